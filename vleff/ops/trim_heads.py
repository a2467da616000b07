"""trim_heads: which attention heads each sample keeps."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.trim_tokens import stable_linear


def trim_heads(
    pooled: Tensor,
    memory_pooled: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The heads of one attention block that each sample keeps, by a small network over means of its tokens.

        logits = score_weight gelu(hidden_weight [pooled, memory_pooled] + hidden_bias) + score_bias

    A head stays if its logit is above the threshold, or if it is the first of the highest ones. For inference: not
    differentiable. A sample's bits depend on nothing but its own means.

    Args:
        pooled: float32 [batch, width], of the tokens that ask.
        memory_pooled: float32 [batch, memory width], of those that are asked, None in self attention.
        hidden_weight: [rank, width + memory width], float32, bfloat16 or float16.
        hidden_bias: [rank], as all that follow the dtype of `hidden_weight`.
        score_weight: [heads, rank].
        score_bias: [heads].
        threshold: of the logits.

    Returns:
        kept bool [batch, heads], at least one of each sample, and logits float32 [batch, heads].

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what was
            expected and what came.
    """
    return torch.ops.vleff.trim_heads(
        pooled, memory_pooled, hidden_weight, hidden_bias, score_weight, score_bias, threshold
    )


def trim_heads_reference(
    pooled: Tensor,
    memory_pooled: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The formulas of `trim_heads` in plain torch, in the dtype of `pooled`; float64 goes too."""
    together = pooled if memory_pooled is None else torch.cat([pooled, memory_pooled], 1)
    logits = head_logits(together, hidden_weight, hidden_bias, score_weight, score_bias)
    return (logits > threshold) | highest(logits), logits


def head_logits(
    pooled: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, score_weight: Tensor, score_bias: Tensor
) -> Tensor:
    """The logits of `trim_heads`, differentiable in everything; pooled [batch, all widths]."""
    return stable_linear(functional.gelu(stable_linear(pooled, hidden_weight, hidden_bias)), score_weight, score_bias)


def highest(logits: Tensor) -> Tensor:
    """bool, of the shape of logits [batch, heads]: the first of the highest of each sample."""
    return logits.argmax(1)[:, None] == torch.arange(logits.shape[1], device=logits.device)


@torch.library.register_fake("vleff::trim_heads")
def _(
    pooled: Tensor,
    memory_pooled: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    score_weight: Tensor,
    *arguments: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    shape = pooled.shape[0], score_weight.shape[0]
    return pooled.new_empty(shape, dtype=torch.bool), pooled.new_empty(shape)


@register_flop_formula(torch.ops.vleff.trim_heads)
def _(
    pooled: torch.Size,
    memory_pooled: torch.Size | None,
    hidden_weight: torch.Size,
    hidden_bias: torch.Size,
    score_weight: torch.Size,
    *arguments: Any,
    **options: Any,
) -> int:
    """Two operations a multiply-add."""
    rank, widths = hidden_weight
    return 2 * pooled[0] * rank * (widths + score_weight[0])
