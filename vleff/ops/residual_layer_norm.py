"""residual_layer_norm: LayerNorm of a sum, in one pass over memory."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff


def residual_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds a residual and normalizes each row:

        sum = input + residual
        normalized = (sum - mean(sum)) / sqrt(variance(sum) + eps) * weight + bias

    Everything is computed in float32 and rounded only where it is stored: `normalized` is made from the
    unrounded sum. A row's bits depend on nothing but that row. Differentiable in all tensors.

    Args:
        input: [..., width], float32, bfloat16 or float16; width at least 1.
        residual: of the shape and dtype of `input`, or None: sum = input.
        weight, bias: [width], the dtype of `input`.
        eps: at least 0.
        return_sum: whether the sum is wanted too.

    Returns:
        normalized: of the shape and dtype of `input`.
        sum: of the shape and dtype of `input`; empty unless asked for.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument,
            what was expected and what came.
    """
    return torch.ops.vleff.residual_layer_norm(input, residual, weight, bias, eps, return_sum)


def residual_layer_norm_reference(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """The formulas of `residual_layer_norm` in plain torch, in the dtype of `input`; float64 goes too."""
    total = input if residual is None else input + residual
    centered = total - total.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    normalized = centered / (variance + eps).sqrt() * weight + bias
    return normalized, total.clone() if return_sum else input.new_empty(0)


@torch.library.register_fake("vleff::residual_layer_norm")
def _(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), input.new_empty(input.shape if return_sum else (0,))


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    input, residual, weight, bias, ctx.eps, ctx.return_sum = inputs
    ctx.save_for_backward(input, residual, weight, bias)
    if not ctx.return_sum:
        ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_normalized: Tensor | None, grad_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    input, residual, weight, bias = ctx.saved_tensors
    need_input, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    grad_total = grad_sum if ctx.return_sum else None
    grad_weight = grad_bias = None
    if grad_normalized is not None:
        total = input if residual is None else input + residual
        shape = [input.shape[-1]]
        _, mean, scale = torch.native_layer_norm(total, shape, weight, bias, ctx.eps)
        mask = [need_input or need_residual, need_weight, need_bias]
        through, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normalized, total, shape, mean, scale, weight, bias, mask
        )
        if mask[0]:
            grad_total = through if grad_total is None else grad_total + through
    return (
        grad_total if need_input else None,
        grad_total if need_residual else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        None,
        None,
    )


torch.library.register_autograd("vleff::residual_layer_norm", _backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.vleff.residual_layer_norm)
def _(input_shape: torch.Size, *arguments: Any, **options: Any) -> int:
    """Products are counted, as torch counts them: a normalization has none."""
    return 0
