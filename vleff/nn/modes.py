"""In which mode of torch a module is called."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def has_tangents() -> bool:
    """Whether tangents are carried along, for forward-mode differentiation."""
    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether tangents are carried along, or a transform of torch.func looks on."""
    if has_tangents():
        return True
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def is_autocast(input: Tensor) -> bool:
    """Whether autocast chooses the dtypes on the device of `input`."""
    device = input.device.type
    return device != "meta" and torch.is_autocast_enabled(device)
