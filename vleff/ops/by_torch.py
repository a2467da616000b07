"""Ops that run on CUDA by torch's own ops: how they are registered, and what they say of wrong arguments.

Nothing of them reads values of the device: they decide by shapes and by numbers that the host knows.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import Tensor

import vleff._library  # noqa: F401  registers torch.ops.vleff

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def runs_on_cuda(op: str, function: Callable[..., Any]) -> None:
    """Makes `function` what torch.ops.vleff has for CUDA under the name `op`. It runs without autocast."""

    @wraps(function)
    def kernel(*arguments: Any, **options: Any) -> Any:
        # the dispatcher keeps autocast on for what a kernel calls, and would round its products
        with torch.autocast("cuda", enabled=False):
            return function(*arguments, **options)

    torch.library.impl(f"vleff::{op}", "cuda", kernel)


def reject(op: str, argument: str, expected: str, got: object) -> NoReturn:
    """Raises what the compiled ops raise.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(f"{op}: argument '{argument}': expected {expected}, got {got}")


def check_tensor(
    op: str,
    argument: str,
    tensor: Tensor | None,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device,
) -> None:
    """Rejects a tensor with another dtype, shape or device.

    Args:
        op, argument: for the message.
        tensor: None is never wrong.
        dtypes: those that may be.
        shape: its sizes; a name stands for any.
        device: where it has to be.

    Raises:
        RuntimeError: the tensor is wrong.
    """
    if tensor is None:
        return
    fits = tensor.dim() == len(shape)
    fits = fits and all(isinstance(size, str) or size == own for size, own in zip(shape, tensor.shape, strict=True))
    if not (fits and tensor.dtype in dtypes and tensor.device == device):
        expected = f"{' or '.join(map(_name, dtypes))} [{', '.join(map(str, shape))}] on {device}"
        reject(op, argument, expected, f"{_name(tensor.dtype)} {list(tensor.shape)} on {tensor.device}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
