"""Which tokens and heads are kept: by trimmers' logits or at random."""

import torch
from torch import Tensor

from vleff.models.trimming import Stream
from vleff.ops.trim_heads import highest
from vleff.ops.trim_tokens import first_of_parts, part_rows
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.masks import with_logistic_noise


def choose_tokens(logits: Tensor, config: SmartTrimConfig, samples: bool) -> tuple[Tensor, Tensor]:
    """What is kept, bool, and the logits whose sigmoids are its gradients.

    Args:
        logits: float32, any shape.
        samples: whether it is drawn, as in training, or decided by the threshold.
    """
    if not samples:
        return logits > config.threshold_logit, logits - config.threshold_logit
    noisy = with_logistic_noise(logits) / config.temperature
    return noisy > 0, noisy


def choose_heads(logits: Tensor, config: SmartTrimConfig, samples: bool) -> tuple[Tensor, Tensor]:
    """As of `choose_tokens` for logits [batch, heads]; the likeliest head of each sample is kept in any case."""
    keep, chances = choose_tokens(logits, config, samples)
    return keep | highest(chances), chances


def random_tokens(stream: Stream, share: float, samples: bool) -> Tensor:
    """bool [total], in each part as many tokens as `share` of its initial ones, at least one, the first among them.

    Args:
        samples: whether they are drawn from torch's generator, or by a hash of the tokens' values: then a sample's
            choice does not depend on its batch mates.
    """
    parts, total = stream.parts.long(), stream.values.shape[0]
    rows = part_rows(stream.parts, total)
    draws = torch.rand(total, dtype=torch.float64) if samples else _hashed(stream.values)
    order_class = (~first_of_parts(stream.parts, total)).double()
    if stream.pinned is not None:
        order_class = order_class.masked_fill(stream.pinned, 0)
    if stream.gates is not None:
        order_class = order_class.masked_fill(stream.gates == 0, 2)
    order = (rows * 4 + order_class + draws).argsort(stable=True)
    ranks = torch.empty_like(order).index_copy_(0, order, torch.arange(total)) - parts.index_select(0, rows)
    wanted = (stream.initial * share).round().clamp(min=1).long()
    return ranks < wanted.index_select(0, rows)


def random_heads(stream: Stream, share: float, heads: int, samples: bool) -> Tensor:
    """bool [batch, heads], in each sample the same number, at least one."""
    batch = stream.tokens.batch_size
    if samples:
        draws = torch.rand(batch, heads)
    else:
        first = stream.values.index_select(0, stream.tokens.offsets[:-1].long().clamp(max=stream.values.shape[0] - 1))
        seeds = _bits(first)
        draws = _mix(seeds[:, None] * 31 + torch.arange(heads))
    kept = max(1, round(share * heads))
    ranks = draws.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < kept


def _hashed(values: Tensor) -> Tensor:
    """float64 [rows] in [0, 1), of the bits of each row."""
    return _mix(_bits(values))


def _bits(values: Tensor) -> Tensor:
    """int64 [rows], the sum of the bits of a row's elements as integers."""
    integers = values.detach().contiguous().view({4: torch.int32, 2: torch.int16}[values.element_size()])
    return integers.sum(-1, dtype=torch.int64)


def _mix(integers: Tensor) -> Tensor:
    """float64 in [0, 1), from which one cannot see that neighbouring integers were close (splitmix64's mixing)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        integers = (integers ^ ((integers >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((integers >> 11) & ((1 << 53) - 1)).double() / 2**53
