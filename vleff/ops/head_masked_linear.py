"""head_masked_linear: products with the weights of those attention heads that each sample keeps.

`head_masked_project` makes the heads' vectors from tokens (query, key and value projections); `head_masked_reduce`
brings them back to the model's width (output projection).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.sum_rows import sum_rows


def head_masked_project(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    parts: int = 1,
    heads: int | None = None,
) -> Tensor:
    """Projects each token to the heads that its sample keeps.

    Token t belongs to the sample b with offsets[b] <= t < offsets[b + 1]. With weight and output seen as blocks
    [parts, heads, head_dim]:

        out[t, p, h] = input[t] @ weight[p, h].T + bias[p, h]    where head_mask[b, h], else 0

    With `index`, token t is row index[t] of `input`, gathered while it is loaded. Rows may be named several times or
    never: gradients are summed in the batch's order.

    Nothing is multiplied for a dropped (sample, head). Sums are in float32, in order of d_in, and only the result is
    rounded; bfloat16 may be multiplied as it is. A token's bits depend neither on the other tokens nor on the number
    of threads. Differentiable in `input`, `weight` and `bias`; with a packed weight in `bias` alone.

    Args:
        input: [rows, d_in], float32, bfloat16 or float16.
        weight: [parts * heads * head_dim, d_in], the dtype of `input`; plain, or packed by `pack_head_masked_weight`,
            which saves packing it in this call.
        offsets: int32 [batch + 1], from 0 to the number of tokens, never descending.
        head_mask: bool [batch, heads], False where a head is dropped; None keeps all.
        bias: [parts * heads * head_dim], the dtype of `input`, or None.
        index: int32 or int64 [tokens], row numbers. Without it the tokens are the rows.
        parts: projections that share the head mask, stacked in `weight`: 3 for query, key and value.
        heads: number of heads, where neither `head_mask` nor a packed weight tells it; it changes no result.

    Returns:
        [tokens, parts * heads * head_dim], contiguous, the dtype of `input`.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what was
            expected and what came.
    """
    return torch.ops.vleff.head_masked_project(input, weight, offsets, head_mask, bias, index, parts, heads)


def head_masked_reduce(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Sums over the heads that a token's sample keeps.

    With b the sample of token t, and input[t] and the columns of `weight` seen as blocks [heads, head_dim]:

        out[t] = residual[t] + bias + sum over h with head_mask[b, h] of input[t, h] @ weight[:, h].T

    Dropped blocks of `input` are neither read nor multiplied; they may hold NaN. Their gradients are 0. Sums are in
    float32, in order of the features, and only the result is rounded; bfloat16 may be multiplied as it is. A token's
    bits depend neither on the other tokens nor on the number of threads. Differentiable in `input`, `weight`, `bias`
    and `residual`; with a packed weight in the last two alone.

    Args:
        input: [tokens, heads * head_dim], float32, bfloat16 or float16.
        weight: [d_out, heads * head_dim], the dtype of `input`; plain, or packed by `pack_head_masked_weight`.
        offsets: int32 [batch + 1], from 0 to the number of tokens, never descending.
        head_mask: bool [batch, heads], False where a head is dropped; None keeps all.
        bias: [d_out], the dtype of `input`, or None.
        residual: [tokens, d_out], the dtype of `input`, or None.

    Returns:
        [tokens, d_out], contiguous, the dtype of `input`.

    Raises:
        RuntimeError: as `head_masked_project`.
    """
    return torch.ops.vleff.head_masked_reduce(input, weight, offsets, head_mask, bias, residual)


def pack_head_masked_weight(weight: Tensor, direction: str, heads: int, parts: int = 1) -> Tensor:
    """Copies a weight into the layout that `head_masked_project` or `head_masked_reduce` multiplies.

    The copy is for this processor and the instruction-set level in use; a change of `weight` does not reach it. It has
    the number of features that it makes as its first size; otherwise it is opaque.

    Args:
        weight: [parts * heads * head_dim, d_in] to project, [d_out, heads * head_dim] to reduce; float32, bfloat16 or
            float16 on the CPU.
        direction: "project" or "reduce".
        heads: number of heads.
        parts: projections stacked in the weight; 1 to reduce.

    Returns:
        uint8 [parts * heads * head_dim, bytes] to project, [d_out, bytes] to reduce.

    Raises:
        RuntimeError: an argument is something else.
    """
    return torch.ops.vleff.pack_head_masked_weight(weight.detach(), direction, heads, parts)


def head_masked_project_reference(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    parts: int = 1,
    heads: int | None = None,
) -> Tensor:
    """The formula of `head_masked_project` in plain torch, in any floating-point dtype, on any device."""
    tokens = input if index is None else input.index_select(0, index)
    out = functional.linear(tokens, weight, bias)
    if head_mask is None:
        return out
    kept = _kept_heads(offsets, head_mask, tokens.shape[0])
    blocks = out.unflatten(-1, (parts, head_mask.shape[1], -1))
    return torch.where(kept[:, None, :, None], blocks, 0).flatten(1)


def head_masked_reduce_reference(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The formula of `head_masked_reduce` in plain torch, in any floating-point dtype, on any device."""
    if head_mask is not None:
        kept = _kept_heads(offsets, head_mask, input.shape[0])
        blocks = input.unflatten(-1, (head_mask.shape[1], -1))
        input = torch.where(kept[:, :, None], blocks, 0).flatten(1)
    out = functional.linear(input, weight, bias)
    return out if residual is None else residual + out


def _kept_heads(offsets: Tensor, head_mask: Tensor, tokens: int) -> Tensor:
    """bool [tokens, heads]"""
    return head_mask.repeat_interleave(offsets.diff(), 0, output_size=tokens)


@torch.library.register_fake("vleff::head_masked_project")
def _(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    *arguments: Any,
) -> Tensor:
    return input.new_empty((input if index is None else index).shape[0], weight.shape[0])


@torch.library.register_fake("vleff::head_masked_reduce")
def _(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


@torch.library.register_fake("vleff::head_masked_grad_weight")
def _(
    of_features: Tensor,
    of_width: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    index: Tensor | None = None,
    parts: int = 1,
    bias_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    features = of_features.shape[1]
    return of_features.new_empty(features, of_width.shape[1]), of_features.new_empty(features if bias_grad else 0)


def _save_project(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, weight, offsets, head_mask, _, index, ctx.parts, _ = inputs
    ctx.save_for_backward(input, weight, offsets, head_mask, index)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, offsets, head_mask, index = ctx.saved_tensors
    needs = (*ctx.needs_input_grad, *[False] * 6)  # trailing arguments that have their default values are left out
    need_input, need_weight, need_bias = needs[0], needs[1], needs[4]
    grad_input = grad_weight = grad_bias = None
    if need_input:
        _check_plain(weight)
        of_parts = None if head_mask is None else head_mask.repeat(1, ctx.parts)
        grad_input = torch.ops.vleff.head_masked_reduce(grad, weight.T, offsets, of_parts)
        if index is not None:
            grad_input = sum_rows(grad_input, index, input.shape[0])
    if need_weight or need_bias:
        grad_weight, grad_bias = torch.ops.vleff.head_masked_grad_weight(
            grad, input, offsets, head_mask, index, ctx.parts, need_bias
        )
    return grad_input, grad_weight if need_weight else None, None, None, grad_bias if need_bias else None, *[None] * 3


def _save_reduce(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, weight, offsets, head_mask, *_ = inputs
    ctx.save_for_backward(input, weight, offsets, head_mask)


def _reduce_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, offsets, head_mask = ctx.saved_tensors
    needs = (*ctx.needs_input_grad, *[False] * 4)
    need_input, need_weight, need_bias, need_residual = needs[0], needs[1], needs[4], needs[5]
    grad_input = grad_weight = None
    if need_input:
        _check_plain(weight)
        grad_input = torch.ops.vleff.head_masked_project(grad, weight.T, offsets, head_mask)
    if need_weight:
        grad_weight = torch.ops.vleff.head_masked_grad_weight(input, grad, offsets, head_mask)[0].T
    grad_bias = grad.sum(0) if need_bias else None
    return grad_input, grad_weight, None, None, grad_bias, grad if need_residual else None


def _check_plain(weight: Tensor) -> None:
    if weight.dtype == torch.uint8:
        raise RuntimeError(
            "head_masked_linear: argument 'weight': expected a plain one where the gradient of 'input' is asked for, "
            "got a packed one"
        )


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "head_masked_grad_weight: second derivatives: expected a graph that is differentiated once, got a gradient of "
        "its gradient. head_masked_project_reference and head_masked_reduce_reference have them."
    )


torch.library.register_autograd("vleff::head_masked_project", _project_backward, setup_context=_save_project)
torch.library.register_autograd("vleff::head_masked_reduce", _reduce_backward, setup_context=_save_reduce)
torch.library.register_autograd("vleff::head_masked_grad_weight", _no_second_derivative)


def head_masked_linear_flops(features: int, width: int, offsets: Tensor, head_mask: Tensor | None, tokens: int) -> int:
    """Floating-point operations of a product in either direction, two a multiply-add, over the kept heads.

    Args:
        features: parts * heads * head_dim.
        width: d_in or d_out, the model's side.
        offsets, head_mask: as of `head_masked_project`. Where they have no data (fake and meta tensors), all heads
            are counted, an upper bound.
        tokens: all tokens.
    """
    if head_mask is None or any(x.is_meta or isinstance(x, torch._subclasses.FakeTensor) for x in (offsets, head_mask)):
        return 2 * tokens * features * width
    blocks = int((offsets.diff() * head_mask.sum(1)).sum())  # kept (token, head)
    return 2 * blocks * features // head_mask.shape[1] * width


@register_flop_formula(torch.ops.vleff.head_masked_project, get_raw=True)
def _(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    *arguments: Any,
    out_val: Tensor,
    **options: Any,
) -> int:
    tokens, features = out_val.shape
    return head_masked_linear_flops(features, input.shape[1], offsets, head_mask, tokens)


@register_flop_formula(torch.ops.vleff.head_masked_reduce, get_raw=True)
def _(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    *arguments: Any,
    out_val: Tensor,
    **options: Any,
) -> int:
    tokens, width = out_val.shape
    return head_masked_linear_flops(input.shape[1], width, offsets, head_mask, tokens)


@register_flop_formula(torch.ops.vleff.head_masked_grad_weight, get_raw=True)
def _(
    of_features: Tensor,
    of_width: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    *arguments: Any,
    **options: Any,
) -> int:
    tokens, features = of_features.shape
    return head_masked_linear_flops(features, of_width.shape[1], offsets, head_mask, tokens)
