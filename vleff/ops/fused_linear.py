"""fused_linear: a linear layer with its bias, activation and residual."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "quick_gelu")
FEWEST_ROWS = 16  # fewer are padded: library kernels take other paths, with other bits, below that


def fused_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(input @ weight.T + bias) + residual

    On the CPU in float32, and in bfloat16 where the processor has AVX-512, the product is oneDNN's; bias and
    activation, or bias and residual, are added before the result is rounded and stored. "quick_gelu", which
    oneDNN lacks, is a pass of its own over the stored result. Elsewhere, and where this torch lacks the private
    ops that it takes, torch's public ops do the same in separate passes.

    A row's bits depend neither on the number of rows nor on whether the weight is packed: fewer than 16 rows
    are padded to 16, because library kernels take other paths below that. Nor do they depend on the number of
    threads, except in float32 with more than 16,384 in_features, where oneDNN divides the sums among threads.

    Differentiable in all tensors, in a packed weight not.

    Args:
        input: [..., in_features], float32, bfloat16, float16 or float64.
        weight: [out_features, in_features], the dtype of `input`; plain, or packed by `pack_linear_weight`.
        bias: [out_features], the dtype of `input`, or None.
        residual: [..., out_features], the leading sizes and the dtype of `input`, or None.
        activation: "none", "gelu" (by the error function), "gelu_tanh", "relu", "silu" or "quick_gelu",
            which is x * sigmoid(1.702 * x).

    Returns:
        [..., out_features], contiguous, the dtype of `input`.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument,
            what was expected and what came.
    """
    return torch.ops.vleff.fused_linear(input, weight, bias, residual, activation)


def fused_linear_reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The formula of `fused_linear` in plain torch; the weight is plain."""
    out = activate(functional.linear(input, weight, bias), activation)
    return out if residual is None else out + residual


def activate(input: Tensor, activation: str) -> Tensor:
    """The activation of that name (see `fused_linear`), in plain torch."""
    match activation:
        case "none":
            return input
        case "gelu":
            return functional.gelu(input)
        case "gelu_tanh":
            return functional.gelu(input, approximate="tanh")
        case "relu":
            return functional.relu(input)
        case "silu":
            return functional.silu(input)
        case "quick_gelu":
            return input * torch.sigmoid(1.702 * input)
    raise ValueError(f"argument 'activation': expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def packs_linear_weight(dtype: torch.dtype) -> bool:
    """Whether `pack_linear_weight` takes this dtype on this processor, with this torch."""
    return torch.ops.vleff.packs_linear_weight(dtype)


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Copies a weight into the layout that `fused_linear` reads fastest.

    The result is opaque: it has a shape and a dtype, but cannot be read, saved, copied or differentiated.

    Args:
        weight: [out_features, in_features], not empty, on the CPU, of a dtype that `packs_linear_weight`
            takes.

    Raises:
        RuntimeError: `weight` is something else.
    """
    return torch.ops.vleff.pack_linear_weight(weight)


def unpack_linear_weight(packed: Tensor) -> Tensor:
    """The weight that `pack_linear_weight` was given, bit for bit.

    Raises:
        RuntimeError: `packed` is no packed weight.
    """
    return torch.ops.vleff.unpack_linear_weight(packed)


@torch.library.register_fake("vleff::fused_linear")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, weight, bias, _, ctx.activation = inputs
    ctx.save_for_backward(input, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, bias = ctx.saved_tensors
    # Trailing arguments that have their default values are left out.
    need_input, need_weight, need_bias, need_residual = (*ctx.needs_input_grad, False, False)[:4]
    if weight.is_mkldnn:
        weight = unpack_linear_weight(weight)
    grad_residual = grad if need_residual else None
    if ctx.activation != "none":
        grad = _through_activation(grad, torch.ops.vleff.fused_linear(input, weight, bias), ctx.activation)
    rows = grad.flatten(0, -2) if grad.dim() > 1 else grad.unsqueeze(0)  # [rows, out_features]
    return (
        torch.ops.vleff.fused_linear(grad, weight.T) if need_input else None,
        torch.ops.vleff.fused_linear(rows.T, input.reshape(-1, input.shape[-1]).T) if need_weight else None,
        rows.sum(0) if need_bias else None,
        grad_residual,
        None,
    )


def _through_activation(grad: Tensor, before: Tensor, activation: str) -> Tensor:
    """The gradient before an activation from the one after it; `before` is what the activation was given."""
    match activation:
        case "gelu":
            return torch.ops.aten.gelu_backward(grad, before)
        case "gelu_tanh":
            return torch.ops.aten.gelu_backward(grad, before, approximate="tanh")
        case "relu":
            return torch.ops.aten.threshold_backward(grad, before, 0)
        case _:  # x * sigmoid(steepness * x); torch's silu_backward has no derivative
            steepness = 1.702 if activation == "quick_gelu" else 1.0
            sigmoid = (steepness * before).sigmoid()
            return grad * sigmoid * (1 + steepness * before * (1 - sigmoid))


torch.library.register_autograd("vleff::fused_linear", _backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.vleff.fused_linear)
def _(input_shape: torch.Size, weight_shape: torch.Size, *arguments: Any, **options: Any) -> int:
    """Two operations a multiply-add of the product, padding included."""
    rows = math.prod(input_shape[:-1])
    return 2 * (max(rows, FEWEST_ROWS) if rows else 0) * weight_shape[0] * weight_shape[1]
