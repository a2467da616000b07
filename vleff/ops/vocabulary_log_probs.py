"""vocabulary_log_probs: log-probabilities of target words, without the logits of all words."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff


def vocabulary_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """out[t] = log_softmax(hidden[t] @ weight.T + bias)[targets[t]]

    Logits are made in blocks that stay in the cache and are never stored, in backward neither. Differentiable once,
    in hidden, weight and bias. A row's bits depend on nothing but that row; gradients have the same bits at every
    number of threads.

    Args:
        hidden: [rows, width], float32, bfloat16 or float16.
        weight: [words, width], the dtype of `hidden`; words at least 1.
        bias: [words], the dtype of `hidden`, or None.
        targets: int32 or int64 [rows], at least 0. Numbers beyond the vocabulary, such as those of words that can
            only be copied, have the result -inf and gradients 0.

    Returns:
        float32 [rows].

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what
            was expected and what came.
    """
    return torch.ops.vleff.vocabulary_log_probs(hidden, weight, bias, targets)[0]


def vocabulary_log_probs_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The formula of `vocabulary_log_probs` in plain torch, in the dtype of `hidden`; float64 goes too."""
    words = weight.shape[0]
    log_probs = torch.nn.functional.linear(hidden, weight, bias).log_softmax(1)
    chosen = log_probs.gather(1, targets.long().clamp(max=words - 1)[:, None]).squeeze(1)
    return chosen.masked_fill(targets >= words, -torch.inf)


@torch.library.register_fake("vleff::vocabulary_log_probs")
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = hidden.shape[0]
    return hidden.new_empty(rows, dtype=torch.float32), hidden.new_empty(rows, 2, dtype=torch.float32)


@torch.library.register_fake("vleff::vocabulary_log_probs_backward")
def _(
    grad_log_probs: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    words = 0 if bias is None else weight.shape[0]
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), weight.new_empty(words)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_log_probs: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight, grad_bias = torch.ops.vleff.vocabulary_log_probs_backward(
        grad_log_probs, *ctx.saved_tensors
    )
    return grad_hidden, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "vocabulary_log_probs: second derivatives: expected a graph that is differentiated once, got a gradient of "
        "its gradient. vocabulary_log_probs_reference has them."
    )


torch.library.register_autograd("vleff::vocabulary_log_probs", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("vleff::vocabulary_log_probs_backward", _no_second_derivative)


@register_flop_formula(torch.ops.vleff.vocabulary_log_probs)
def _(hidden_shape: torch.Size, weight_shape: torch.Size, *arguments: Any, **options: Any) -> int:
    """Two operations a multiply-add of the product."""
    return 2 * hidden_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.vleff.vocabulary_log_probs_backward)
def _(
    grad_shape: torch.Size, hidden_shape: torch.Size, weight_shape: torch.Size, *arguments: Any, **options: Any
) -> int:
    """The product again, and those of both gradients."""
    return 6 * hidden_shape[0] * weight_shape[0] * weight_shape[1]
