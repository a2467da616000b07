"""The trimmers: small networks that score tokens and heads."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vleff.models.trimming import Stream
from vleff.ops.fused_linear import fused_linear

_EPSILON = 1e-5


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
    values, parts = stream.values, stream.parts.long()
    states = functional.layer_norm(values.float(), values.shape[-1:], eps=_EPSILON)
    total, starts, counts = values.shape[0], parts[:-1], parts.diff()
    rows = torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts, output_size=total)
    gates = None if stream.gates is None else stream.gates.float()
    kept = counts.float() if gates is None else sum_parts(gates[:, None], parts).squeeze(1)
    pooled = sum_parts(states, parts, gates) / kept.clamp(min=1)[:, None]
    empty = counts == 0
    padded = functional.pad(states, (0, 0, 0, 1))  # a row of zeros, which empty parts at the end begin with
    first = padded.index_select(0, starts).masked_fill(empty[:, None], 0)
    return View(states, rows, pooled, first)


def sum_parts(values: Tensor, parts: Tensor, weights: Tensor | None = None) -> Tensor:
    """values [total, width], weights [total] -> [parts, width], the weighted sums over the rows of each part."""
    rows = torch.arange(values.shape[0], device=values.device)
    return functional.embedding_bag(rows, values, parts[:-1].long(), mode="sum", per_sample_weights=weights)


class TokenTrimmer(nn.Module):
    """Scores the tokens of one stream before one layer (reconstruction of the cross-modal-aware token trimmer).

    With x a token's state, g the mean of its modality's tokens and c the other modality's first token:

        logit = MLP(concat(W_local x, W_global g)) + temperature * cosine(W_local x, W_c c)

    the second term only where there is another modality. MLP is W_2 GELU(W_1 . + b_1) + b_2.

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
        if other_width is not None:
            self.other_weight = _matrix(rank, other_width)
            self.temperature = nn.Parameter(torch.ones(1))

    @property
    def multiply_adds(self) -> int:
        """Of each token."""
        return self.local_weight.numel() + self.hidden_weight.numel() // 2 + 2 * self.score_weight.numel()

    def forward(self, view: View, other: Tensor | None) -> Tensor:
        """The tokens' logits of being kept.

        Args:
            view: of the stream, with T tokens in P parts.
            other: [P, other_width], the other modality's first token for each part, None if there is none.

        Returns:
            float32 [T].
        """
        rank = self.local_weight.shape[0]
        local = _linear(view.states, self.local_weight.float())
        pooled = _linear(view.pooled, self.global_weight.float())
        of_local, of_pooled = self.hidden_weight.float().split(rank, 1)
        from_pooled = _linear(pooled, of_pooled.contiguous(), self.hidden_bias.float())
        hidden = functional.gelu(_linear(local, of_local.contiguous()) + from_pooled.index_select(0, view.rows))
        logits = (hidden * self.score_weight.float()).sum(-1) + self.score_bias.float()
        if other is None or not hasattr(self, "other_weight"):
            return logits
        direction = functional.normalize(_linear(other, self.other_weight.float()), dim=-1)
        cosine = (functional.normalize(local, dim=-1) * direction.index_select(0, view.rows)).sum(-1)
        return logits + self.temperature.float() * cosine


class HeadTrimmer(nn.Module):
    """Scores the heads of one attention block for each sample (reconstruction of the modality-adaptive head trimmer).

    A two-layer MLP with GELU over the means of the query side's tokens, by modality, and in cross attention of the
    key side's, too.

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

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [batch, widths] -> logits of being kept, float32 [batch, heads]"""
        hidden = functional.gelu(_linear(pooled, self.hidden_weight.float(), self.hidden_bias.float()))
        return _linear(hidden, self.score_weight.float(), self.score_bias.float())


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias, in inference with bits that depend on nothing but the row."""
    needs_gradients = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    return (functional.linear if needs_gradients else fused_linear)(input, weight, bias)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).uniform_(-1, 1) / columns**0.5)
