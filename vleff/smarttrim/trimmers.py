"""The trimmers: small networks that score tokens and heads."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vleff.models.trimming import Stream
from vleff.ops.trim_heads import head_logits, trim_heads
from vleff.ops.trim_tokens import first_states, normalized_states, part_rows, sum_parts, token_logits, trim_tokens


class View(NamedTuple):
    """What trimmers see of a stream; float32, states normalized by LayerNorm without parameters.

    Attributes:
        states: [total, width].
        rows: int64 [total], the part that each token belongs to.
        pooled: [parts, width], the mean of each part's kept tokens; zeros for an empty part.
        first: [parts, width], the first token of each part; zeros for an empty part.
    """

    states: Tensor
    rows: Tensor
    pooled: Tensor
    first: Tensor


def look_at(stream: Stream) -> View:
    """What trimmers see of a stream."""
    states, parts = normalized_states(stream.values), stream.parts
    gates = None if stream.gates is None else stream.gates.float()
    kept = parts.diff()[:, None] if gates is None else sum_parts(gates[:, None], parts)
    pooled = sum_parts(states, parts, gates) / kept.clamp(min=1)
    return View(states, part_rows(parts, states.shape[0]), pooled, first_states(states, parts))


def first_of_stream(stream: Stream) -> Tensor:
    """As `View.first`, without looking at more."""
    starts = stream.parts[:-1].clamp(max=max(stream.values.shape[0] - 1, 0))
    if stream.values.shape[0] == 0:
        return stream.values.new_zeros(starts.shape[0], stream.values.shape[1], dtype=torch.float32)
    first = normalized_states(stream.values.index_select(0, starts))
    return first.masked_fill((stream.parts.diff() == 0)[:, None], 0)


class TokenTrimmer(nn.Module):
    """Scores the tokens of one stream before one layer (reconstruction of the cross-modal-aware token trimmer).

    With x a token's state, g the mean of its modality's tokens and c the other modality's first token:

        logit = MLP(concat(W_local x, W_global g)) + temperature * cosine(W_local x, W_c c)

    the second term only where there is another modality. MLP is W_2 GELU(W_1 . + b_1) + b_2. States are normalized
    first: `vleff.ops.trim_tokens`.

    Args:
        width: of the tokens.
        other_width: of the other modality's tokens, None if there is none.
        rank: width of everything inside.
        initial_logit: b_2 at first.
    """

    def __init__(self, width: int, other_width: int | None, rank: int, initial_logit: float) -> None:
        super().__init__()
        self.local_weight = _matrix(rank, width)
        self.global_weight = _matrix(rank, width)
        self.hidden_weight = _matrix(rank, 2 * rank)
        self.hidden_bias = nn.Parameter(torch.zeros(rank))
        self.score_weight = _matrix(1, rank)
        self.score_bias = nn.Parameter(torch.tensor([initial_logit]))
        self.other_weight = None if other_width is None else _matrix(rank, other_width)
        self.temperature = None if other_width is None else nn.Parameter(torch.ones(1))

    @property
    def multiply_adds(self) -> int:
        """Of each token."""
        return self.local_weight.numel() + self.hidden_weight.numel() // 2

    def forward(self, view: View, other: Tensor | None) -> Tensor:
        """The tokens' logits of being kept, differentiable.

        Args:
            view: of the stream, with T tokens in P parts.
            other: [P, other_width], the other modality's first token for each part, None if there is none.

        Returns:
            float32 [T].
        """
        weights = self._weights(torch.float32, other is not None)
        return token_logits(view.states, view.rows, view.pooled, other, **weights)

    def choose(
        self, stream: Stream, other: Tensor | None, paired: bool, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For inference: `trim_tokens` of the stream, on a GPU with survivors for all tokens.

        Args:
            stream: without gates.
            other: as of `forward`; None where `paired`.
            paired: whether the parts of each sample are two modalities.
            threshold: of the logits.
        """
        weights = self._weights(stream.values.dtype, paired or other is not None)
        return trim_tokens(
            stream.values,
            stream.parts,
            **weights,
            other=other,
            pinned=stream.pinned,
            paired=paired,
            threshold=threshold,
        )

    def _weights(self, dtype: torch.dtype, with_other: bool) -> dict[str, Any]:
        """By the names that they have in `trim_tokens`; those of another token only if there is one."""
        own = ("local_weight", "global_weight", "hidden_weight", "hidden_bias", "score_weight", "score_bias")
        names = (*own, "other_weight", "temperature") if with_other else own
        found: dict[str, Any] = {name: self._parameters[name] for name in names}  # past torch's slower look-up
        return {name: weight if weight.dtype == dtype else weight.to(dtype) for name, weight in found.items()}


class HeadTrimmer(nn.Module):
    """Scores the heads of one attention block for each sample (reconstruction of the modality-adaptive head trimmer).

    A two-layer MLP with GELU over the means of the query side's tokens, by modality, and in cross attention of the
    key side's, too: `vleff.ops.trim_heads`.

    Args:
        widths: of the means, together.
        heads: of the block.
        rank: width of the hidden layer.
        initial_logit: the bias of the scores at first.
    """

    def __init__(self, widths: int, heads: int, rank: int, initial_logit: float) -> None:
        super().__init__()
        self.hidden_weight = _matrix(rank, widths)
        self.hidden_bias = nn.Parameter(torch.zeros(rank))
        self.score_weight = _matrix(heads, rank)
        self.score_bias = nn.Parameter(torch.full((heads,), initial_logit))

    @property
    def multiply_adds(self) -> int:
        """Of each sample."""
        return self.hidden_weight.numel() + self.score_weight.numel()

    def forward(self, pooled: list[Tensor]) -> Tensor:
        """pooled one or two of [batch, width] -> logits of being kept, float32 [batch, heads], differentiable"""
        weights = (self.hidden_weight, self.hidden_bias, self.score_weight, self.score_bias)
        return head_logits(torch.cat(pooled, 1), *(weight.float() for weight in weights))

    def choose(self, pooled: list[Tensor], threshold: float) -> tuple[Tensor, Tensor]:
        """For inference: `trim_heads` of the means, in one kernel."""
        memory = pooled[1] if len(pooled) > 1 else None
        weights = (self.hidden_weight, self.hidden_bias, self.score_weight, self.score_bias)
        return trim_heads(pooled[0], memory, *weights, threshold)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).uniform_(-1, 1) / columns**0.5)
