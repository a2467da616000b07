"""Which weights stay: those with the highest scores, selected exactly."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vleff.lottery.config import RANKINGS, LotteryConfig
from vleff.lottery.matrices import AttentionMatrices, spread_heads

_HIGH_BITS = 1 << 16


def combined_scores(
    weights: Mapping[str, Tensor],
    attentions: list[AttentionMatrices],
    head_scores: Mapping[str, Tensor],
    config: LotteryConfig,
) -> dict[str, Tensor]:
    """|weight| · head ** strength, and |weight| where no head owns it (reconstruction).

    A head counts by its score over the mean score of its attention, within [least_head, most_head]; where that
    mean is not positive, all heads count the same.

    Args:
        weights: [out_features, in_features] by name.
        head_scores: [heads] by the name of the attention's module.

    Returns:
        float32 scores of the shapes of `weights`, not negative.

    Raises:
        KeyError: an attention has no scores.
    """
    scores = {name: weight.detach().float().abs() for name, weight in weights.items()}
    for attention in attentions:
        heads = head_scores[attention.module].float()
        mean = heads.mean()
        relative = heads / mean if mean > 0 else torch.ones_like(heads)
        factor = relative.clamp(config.least_head, config.most_head) ** config.strength
        for name in (attention.query, attention.key, attention.value):
            if name in scores:
                scores[name] *= spread_heads(factor, scores[name].shape[0]).to(scores[name].device)[:, None]
        if attention.output in scores:
            score = scores[attention.output]
            score *= spread_heads(factor, score.shape[1]).to(score.device)
    return scores


def select_masks(scores: Mapping[str, Tensor], sparsity: float, ranking: str = "global") -> dict[str, Tensor]:
    """Masks that leave out exactly the round(sparsity · n) weights with the lowest scores.

    Of equal scores, those that come first are left out first.

    Args:
        scores: float32 by name; negative means: left out before all others.
        ranking: "global" over all matrices, "matrix" for each by itself.

    Returns:
        bool, of the shapes of `scores`: True where a weight stays.

    Raises:
        ValueError: a score is NaN, or `sparsity` or `ranking` is out of range.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"argument 'sparsity': expected 0 to 1, got {sparsity}")
    if ranking not in RANKINGS:
        raise ValueError(f"argument 'ranking': expected one of {', '.join(RANKINGS)}, got {ranking!r}")
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise ValueError(f"argument 'scores': expected numbers, got NaN in {name!r}")
    groups = [[name] for name in scores] if ranking == "matrix" else [list(scores)]
    masks: dict[str, Tensor] = {}
    for group in groups:
        masks |= _select({name: scores[name] for name in group}, sparsity)
    return {name: masks[name] for name in scores}


def _select(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    pruned = round(sparsity * sum(score.numel() for score in scores.values()))
    if pruned == 0:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    # the order of floats that are not negative is that of their bits: find the threshold by its two halves
    high, before = _bucket((_keys(score) >> 16 for score in scores.values()), pruned)
    low, equal_before = _bucket(
        (key[key >> 16 == high] & 0xFFFF for key in map(_keys, scores.values())), pruned - before
    )
    threshold, ties = high << 16 | low, pruned - before - equal_before
    masks = {}
    for name, score in scores.items():
        key = _keys(score)
        mask = key > threshold
        equal = (key == threshold).nonzero()[:, 0]
        mask[equal[ties:]] = True
        ties = max(0, ties - len(equal))
        masks[name] = mask.view(score.shape)
    return masks


def _keys(scores: Tensor) -> Tensor:
    """int32, in the order of the scores, negative ones 0."""
    bits = scores.detach().float().contiguous().view(-1).view(torch.int32)
    return torch.where(bits < 0, 0, bits + 1)


def _bucket(keys: Iterable[Tensor], rank: int) -> tuple[int, int]:
    """The key of the element of that rank (from 1), keys below 2**16, and the number of elements with lower keys."""
    counts = torch.zeros(_HIGH_BITS, dtype=torch.int64)
    for key in keys:
        counts += torch.bincount(key, minlength=_HIGH_BITS).cpu()
    reached = counts.cumsum(0)
    found = int((reached < rank).sum())
    return found, int(reached[found - 1]) if found else 0
