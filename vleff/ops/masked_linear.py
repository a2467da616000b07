"""masked_linear: a linear layer whose weight is sparse, without any structure in its zeros."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.fused_linear import activate
from vleff.ops.masked_structure import MaskedStructure

MOST_FEW_TOKENS = 2  # up to which the copy by steps is read
Transposed = tuple[MaskedStructure, Tensor]
Steps = tuple[Tensor, Tensor]


def masked_linear(
    input: Tensor,
    values: Tensor,
    structure: MaskedStructure,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    transposed: Transposed | None = None,
    steps: Steps | None = None,
) -> Tensor:
    """activation(input @ weight.T + bias) + residual for a sparse weight: only its elements are multiplied.

    Tokens are taken in panels, which stay in the nearest caches; sums are in float32, and only the result is
    rounded. A token's bits depend neither on the other tokens nor on the number of threads.

    Differentiable in `input`, `values`, `bias` and `residual`, where `activation` is "none".

    Args:
        input: [..., columns], float32, bfloat16 or float16.
        values: [elements], the weight's elements in the order of `structure`, the dtype of `input`.
        structure: where they stand in the weight [rows, columns].
        bias: [rows], the dtype of `input`, or None.
        residual: [..., rows], the leading sizes and the dtype of `input`, or None.
        activation: "none", "relu", "gelu" (by the error function), "gelu_tanh", "silu" or "quick_gelu".
        transposed: `structure.transposed()`, needed for the gradient of `input` only.
        steps: `pack_masked_weight(values, structure)`, which makes up to 2 tokens several times as fast, or None.

    Returns:
        [..., rows], contiguous, the dtype of `input`.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device, or the structure's starts descend; or
            a gradient was asked for with an activation or, of `input`, without `transposed`. Whether the
            structure's other numbers fit together, `MaskedStructure.check` says; wrong ones give wrong results.
    """
    back: tuple[Tensor | None, ...] = (None, None, None, None)
    if transposed is not None:
        other, elements = transposed
        back = (other.starts, other.order, other.block_columns, elements)
    return torch.ops.vleff.masked_linear(
        input,
        values,
        structure.starts,
        structure.order,
        structure.block_columns,
        structure.rows,
        structure.row_chunk,
        structure.column_block,
        bias,
        residual,
        activation,
        *(steps or (None, None)),
        *back,
    )


def pack_masked_weight(values: Tensor, structure: MaskedStructure) -> Steps:
    """A copy of a sparse weight by steps, which `masked_linear` reads for few tokens.

    A change of `values` does not reach the copy.

    Args:
        values: [elements], in the order of `structure`.

    Returns:
        the values [elements] and uint8 [elements], their columns within their blocks.
    """
    order = structure.by_steps()
    return values.detach().index_select(0, order), structure.block_columns.index_select(0, order)


def masked_linear_reference(
    input: Tensor,
    values: Tensor,
    structure: MaskedStructure,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The formula of `masked_linear` in plain torch."""
    out = activate(functional.linear(input, structure.scatter(values), bias), activation)
    return out if residual is None else out + residual


@torch.library.register_fake("vleff::masked_linear")
def _(
    input: Tensor, values: Tensor, starts: Tensor, order: Tensor, block_columns: Tensor, rows: int, *_: Any
) -> Tensor:
    return input.new_empty(*input.shape[:-1], rows)


@torch.library.register_fake("vleff::masked_linear_grad_values")
def _(grad_out: Tensor, input: Tensor, starts: Tensor, order: Tensor, block_columns: Tensor, *_: Any) -> Tensor:
    return input.new_empty(block_columns.shape, dtype=torch.float32)


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, values, starts, order, block_columns, _, ctx.row_chunk, ctx.column_block, *rest = inputs
    _, _, ctx.activation, _, _, *transposed = rest
    ctx.save_for_backward(input, values, starts, order, block_columns, *transposed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, values, starts, order, block_columns, *transposed = ctx.saved_tensors
    needs = (*ctx.needs_input_grad, *[False] * 17)
    if ctx.activation != "none":
        raise RuntimeError(
            f"masked_linear: argument 'activation': expected none where gradients are asked for, got '{ctx.activation}'"
        )
    grad_input = grad_values = None
    if needs[0]:
        if transposed[0] is None:
            raise RuntimeError("masked_linear: argument 'transposed': expected a structure for the gradient, got None")
        other_starts, other_order, other_columns, elements = transposed
        grad_input = torch.ops.vleff.masked_linear(
            grad,
            values.index_select(0, elements),
            other_starts,
            other_order,
            other_columns,
            input.shape[-1],
            ctx.row_chunk,
            ctx.column_block,
        )
    if needs[1]:
        grad_values = torch.ops.vleff.masked_linear_grad_values(
            grad, input, starts, order, block_columns, ctx.row_chunk, ctx.column_block
        ).to(values.dtype)
    grad_bias = grad.flatten(0, -2).sum(0) if needs[8] else None
    return (
        grad_input,
        grad_values,
        *[None] * 6,
        grad_bias,
        grad if needs[9] else None,
        *[None] * 7,
    )


torch.library.register_autograd("vleff::masked_linear", _backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.vleff.masked_linear)
def _(input_shape: torch.Size, values_shape: torch.Size, *arguments: Any, **options: Any) -> int:
    """Two operations a multiply-add with an element."""
    return 2 * math.prod(input_shape[:-1]) * values_shape[0]


@register_flop_formula(torch.ops.vleff.masked_linear_grad_values)
def _(grad_shape: torch.Size, input_shape: torch.Size, *arguments: Any, out_shape: torch.Size, **options: Any) -> int:
    """Two operations a multiply-add with an element."""
    return 2 * math.prod(grad_shape[:-1]) * out_shape[0]
