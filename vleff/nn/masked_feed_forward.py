"""Two MaskedLinear in a row, whose hidden features never leave the kernel's panels."""

import torch
from torch import Tensor

from vleff.nn.masked_linear import MaskedLinear
from vleff.nn.modes import is_called_plainly
from vleff.ops.masked_feed_forward import masked_feed_forward as run_in_panels

_FEWEST_TOKENS = 32  # a thread: workers share the tokens


def masked_feed_forward(
    first: MaskedLinear, second: MaskedLinear, input: Tensor, residual: Tensor | None = None
) -> Tensor:
    """second(first(input), residual), bit for bit; in one kernel for inference of more than a few tokens.

    Modules with hooks, or with a forward of their own, are called.

    Args:
        first: [in_features] -> [hidden features], with any activation.
        second: [hidden features] -> [out_features], without one.
        input: [..., in_features].
        residual: [..., out_features] or None.

    Returns:
        [..., out_features]
    """
    tensors = (input, residual)
    called = second.activation != "none" or any(
        not is_called_plainly(module, MaskedLinear) for module in (first, second)
    )
    if called or not (first.runs_kernel(*tensors) and second.runs_kernel(*tensors)) or not _are_enough(input):
        return second(first(input), residual)
    weights = (first.values, first.structure), (second.values, second.structure)
    return run_in_panels(input, *weights, first.bias, second.bias, residual, first.activation)


def _are_enough(input: Tensor) -> bool:
    if torch.compiler.is_compiling():  # one graph for all numbers of tokens
        return True
    return input.numel() >= _FEWEST_TOKENS * torch.get_num_threads() * input.shape[-1]
