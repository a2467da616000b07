"""In which mode of torch a module is called, and whether what was made from its parameters still holds."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
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


def is_called_plainly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module runs the forward of `kind` and nothing else."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module).forward is kind.forward and not any(hooks)


def version_of(parameter: Tensor) -> tuple[Any, ...] | None:
    """What changes when the parameter does, except through `.data`; None where changes could not be noticed."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if parameter.is_inference() or is_distributed or type(parameter) is not nn.Parameter:
        return None
    return (id(parameter), parameter._version, parameter.data_ptr(), parameter.dtype)
