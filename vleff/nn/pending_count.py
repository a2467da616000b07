"""A count that a device works out and the host needs."""

import torch
from torch import Tensor


class PendingCount:
    """A number on its way from a device to the host, which may do other things until it waits for it.

    Args:
        number: integer, of one element. On a GPU the current stream copies it now.
    """

    def __init__(self, number: Tensor) -> None:
        self._number, self._arrival = number, None
        if number.device.type == "cuda":
            self._number = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(number.device))

    def wait(self) -> int:
        """The number, once it is there."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return int(self._number)


def can_wait_for(tensor: Tensor) -> bool:
    """Whether the host may read what is in a tensor: not under torch.compile, nor while a CUDA graph is captured."""
    if torch.compiler.is_compiling():
        return False
    device = tensor.device.type
    return device == "cpu" or (device == "cuda" and not torch.cuda.is_current_stream_capturing())
