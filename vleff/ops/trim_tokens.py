"""trim_tokens: scores the tokens of a ragged batch and finds those that stay."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.fused_linear import fused_linear

EPSILON = 1e-5

Result = tuple[Tensor, Tensor, Tensor, Tensor]


def trim_tokens(
    values: Tensor,
    parts: Tensor,
    local_weight: Tensor,
    global_weight: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    other: Tensor | None = None,
    other_weight: Tensor | None = None,
    temperature: Tensor | None = None,
    pinned: Tensor | None = None,
    paired: bool = False,
    threshold: float = 0.0,
    eps: float = EPSILON,
) -> Result:
    """Which tokens stay, by a small network that compares each with its part's mean and with another token.

    A part is a stretch of tokens: a sample, or one modality of it. With x a token's state, normalized to mean 0 and
    variance 1 (LayerNorm without parameters), g the mean of its part's and c the state of another token:

        local  = local_weight x
        hidden = gelu(hidden_weight [local, global_weight g] + hidden_bias)
        logit  = <score_weight, hidden> + score_bias + temperature * cosine(local, other_weight c)

    the last term only where there is a c. A token stays if its logit is above the threshold, it is the first of its
    part, or it is pinned. For inference: not differentiable. A token's logit depends on its part and c only; its bits
    are the same in every batch and at every number of threads.

    Args:
        values: [tokens, width], float32, bfloat16 or float16.
        parts: int32 [parts + 1], where each part begins, from 0 to the number of tokens.
        local_weight, global_weight: [rank, width], as all weights the dtype of `values`.
        hidden_weight: [rank, 2 * rank].
        hidden_bias: [rank].
        score_weight: [1, rank].
        score_bias: [1].
        other: float32 [parts, other width], c of each part, where parts are not paired; None without.
        other_weight: [rank, other width], and
        temperature: [1], just where parts are paired or there is an `other`.
        pinned: bool [tokens], tokens that stay in any case.
        paired: whether parts are pairs, of which each has the other's first token for c; 0 if that is empty.
        threshold: of the logits.
        eps: of the normalization.

    Returns:
        survivors int32 [kept], the rows that stay, ascending; on CUDA [tokens], of which the first kept_parts[-1] stay
            and the others are 0, as cutting them off would wait for the device;
        kept_parts int32 [parts + 1], where each part begins among them;
        pooled float32 [parts, width], g of each part, zeros for an empty one;
        logits float32 [tokens].

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what was
            expected and what came.
    """
    return torch.ops.vleff.trim_tokens(
        values,
        parts,
        local_weight,
        global_weight,
        hidden_weight,
        hidden_bias,
        score_weight,
        score_bias,
        other,
        other_weight,
        temperature,
        pinned,
        paired,
        threshold,
        eps,
    )


def trim_tokens_reference(
    values: Tensor,
    parts: Tensor,
    local_weight: Tensor,
    global_weight: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    other: Tensor | None = None,
    other_weight: Tensor | None = None,
    temperature: Tensor | None = None,
    pinned: Tensor | None = None,
    paired: bool = False,
    threshold: float = 0.0,
    eps: float = EPSILON,
) -> Result:
    """The formulas of `trim_tokens` in plain torch, in float32 or, where `values` are, float64."""
    states = normalized_states(values, eps)
    pooled = sum_parts(states, parts) / parts.diff().clamp(min=1)[:, None]
    if paired:
        other = first_states(states, parts).unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    weights = (local_weight, global_weight, hidden_weight, hidden_bias, score_weight, score_bias)
    logits = token_logits(states, part_rows(parts, values.shape[0]), pooled, other, *weights, other_weight, temperature)
    keep = (logits > threshold) | first_of_parts(parts, values.shape[0])
    keep = keep if pinned is None else keep | pinned
    kept_parts = functional.pad(keep.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, parts)
    return keep.nonzero().squeeze(1).int(), kept_parts, pooled, logits


def normalized_states(values: Tensor, eps: float = EPSILON) -> Tensor:
    """values [tokens, width], each row with mean 0 and variance 1; float64 or float32."""
    return functional.layer_norm(
        values.to(torch.promote_types(values.dtype, torch.float32)), values.shape[-1:], eps=eps
    )


def part_rows(parts: Tensor, tokens: int) -> Tensor:
    """int64 [tokens], the part that each token belongs to."""
    counts = parts.diff()
    return torch.arange(counts.shape[0], device=parts.device).repeat_interleave(counts, output_size=tokens)


def sum_parts(values: Tensor, parts: Tensor, weights: Tensor | None = None) -> Tensor:
    """values [tokens, width], weights [tokens] -> [parts, width], the weighted sums over the rows of each part."""
    rows = torch.arange(values.shape[0], device=values.device)
    return functional.embedding_bag(rows, values, parts[:-1].long(), mode="sum", per_sample_weights=weights)


def first_of_parts(parts: Tensor, tokens: int) -> Tensor:
    """bool [tokens], whether a token is the first of its part."""
    starts = torch.where(parts.diff() > 0, parts[:-1], tokens).long()
    first = torch.zeros(tokens + 1, dtype=torch.bool, device=parts.device)
    return first.index_fill_(0, starts, True)[:-1]


def first_states(states: Tensor, parts: Tensor) -> Tensor:
    """states [tokens, width] -> [parts, width], the first token of each part, zeros for an empty part."""
    starts = parts[:-1].long().clamp(max=max(states.shape[0] - 1, 0))
    if states.shape[0] == 0:
        return states.new_zeros(starts.shape[0], states.shape[1])
    return states.index_select(0, starts).masked_fill((parts.diff() == 0)[:, None], 0)


def token_logits(
    states: Tensor,
    rows: Tensor,
    pooled: Tensor,
    other: Tensor | None,
    local_weight: Tensor,
    global_weight: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    other_weight: Tensor | None = None,
    temperature: Tensor | None = None,
) -> Tensor:
    """The logits of `trim_tokens` from normalized states, differentiable in everything.

    Args:
        states: [tokens, width], as `normalized_states`.
        rows: int64 [tokens], as `part_rows`.
        pooled: [parts, width], g.
        other: [parts, other width], c, or None.
        others: as of `trim_tokens`, in the dtype of `states`.
    """
    of_local, of_pooled = (half.contiguous() for half in hidden_weight.split(local_weight.shape[0], 1))
    local = stable_linear(states, local_weight)
    from_pooled = stable_linear(stable_linear(pooled, global_weight), of_pooled, hidden_bias)
    hidden = functional.gelu(stable_linear(local, of_local) + from_pooled.index_select(0, rows))
    logits = (hidden * score_weight).sum(-1) + score_bias
    if other is None or other_weight is None or temperature is None:
        return logits
    direction = functional.normalize(stable_linear(other, other_weight), dim=-1)
    return logits + temperature * (functional.normalize(local, dim=-1) * direction.index_select(0, rows)).sum(-1)


def stable_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias, without gradients with bits that depend on nothing but the row."""
    needs_gradients = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    return (functional.linear if needs_gradients else fused_linear)(input, weight, bias)


@torch.library.register_fake("vleff::trim_tokens")
def _(values: Tensor, parts: Tensor, *arguments: Any, **options: Any) -> Result:
    kept = values.shape[0] if values.device.type == "cuda" else torch.library.get_ctx().new_dynamic_size(min=0)
    return (
        parts.new_empty(kept),
        parts.new_empty(parts.shape),
        values.new_empty(parts.shape[0] - 1, values.shape[1], dtype=torch.float32),
        values.new_empty(values.shape[:1], dtype=torch.float32),
    )


def trim_tokens_flops(tokens: int, parts: int, width: int, rank: int, other_width: int = 0) -> int:
    """Floating-point operations, two a multiply-add: the matrix products of tokens and of parts."""
    return 2 * (tokens * rank * (width + rank) + parts * rank * (width + rank + other_width))


@register_flop_formula(torch.ops.vleff.trim_tokens)
def _(
    values: torch.Size,
    parts: torch.Size,
    local_weight: torch.Size,
    global_weight: torch.Size,
    hidden_weight: torch.Size,
    hidden_bias: torch.Size,
    score_weight: torch.Size,
    score_bias: torch.Size,
    other: torch.Size | None = None,
    other_weight: torch.Size | None = None,
    *arguments: Any,
    **options: Any,
) -> int:
    return trim_tokens_flops(
        values[0], parts[0] - 1, values[1], local_weight[0], other_weight[1] if other_weight else 0
    )
