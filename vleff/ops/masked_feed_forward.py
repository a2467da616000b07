"""masked_feed_forward: two linear layers in a row whose weights are sparse."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.masked_linear import masked_linear_reference
from vleff.ops.masked_structure import MaskedStructure

Weight = tuple[Tensor, MaskedStructure]


def masked_feed_forward(
    input: Tensor,
    first: Weight,
    second: Weight,
    first_bias: Tensor | None = None,
    second_bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(input @ first.T + first_bias) @ second.T + second_bias + residual for sparse weights.

    Bit for bit what two `masked_linear` return, but what is between them never leaves the panels in which
    tokens are multiplied, nor the caches.

    Not differentiable: use two `masked_linear`.

    Args:
        input: [..., columns], float32, bfloat16 or float16 on the CPU.
        first: the values [elements] and the structure of a weight [hidden, columns].
        second: the values and the structure of a weight [rows, hidden].
        first_bias, second_bias: [hidden] and [rows], or None.
        residual: [..., rows], the leading sizes and the dtype of `input`, or None.
        activation: "none", "relu", "gelu" (by the error function), "gelu_tanh", "silu" or "quick_gelu".

    Returns:
        [..., rows], contiguous, the dtype of `input`.

    Raises:
        RuntimeError: as of `masked_linear`.
    """
    return torch.ops.vleff.masked_feed_forward(
        input, *_parts(*first), first_bias, activation, *_parts(*second), second_bias, residual
    )


def masked_feed_forward_reference(
    input: Tensor,
    first: Weight,
    second: Weight,
    first_bias: Tensor | None = None,
    second_bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The formula of `masked_feed_forward` in plain torch."""
    hidden = masked_linear_reference(input, *first, first_bias, activation=activation)
    return masked_linear_reference(hidden, *second, second_bias, residual)


def _parts(values: Tensor, structure: MaskedStructure) -> tuple[Any, ...]:
    places = structure.starts, structure.order, structure.block_columns
    return values, *places, structure.rows, structure.row_chunk, structure.column_block


_SECOND_ROWS = 14  # the place of `second_rows` among the op's arguments


@torch.library.register_fake("vleff::masked_feed_forward")
def _(input: Tensor, *arguments: Any) -> Tensor:
    return input.new_empty(*input.shape[:-1], arguments[_SECOND_ROWS - 1])


def _backward(ctx: Any, grad: Tensor) -> Any:
    raise RuntimeError("masked_feed_forward: has no gradients: use two masked_linear")


torch.library.register_autograd("vleff::masked_feed_forward", _backward)


@register_flop_formula(torch.ops.vleff.masked_feed_forward)
def _(input_shape: torch.Size, first_shape: torch.Size, *arguments: Any, **options: Any) -> int:
    """Two operations a multiply-add with an element."""
    second_shape = arguments[8]
    return 2 * math.prod(input_shape[:-1]) * (first_shape[0] + second_shape[0])
