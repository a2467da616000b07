"""Questions drawn word by word."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vleff.ops.top_words import top_words
from vleff.unanswerable.decoding import Rules, Steps
from vleff.unanswerable.generation import GenerationSettings, Hypothesis, best

_LIKELIEST = 64  # words among which those of top_p usually are


def sample(
    steps: Steps, rules: Rules, settings: GenerationSettings, count: int, seeds: Sequence[int]
) -> list[list[Hypothesis]]:
    """Draws questions.

    Each word is drawn from softmax(log P / temperature), cut to the likeliest words that have the probability top_p
    together. A source's questions depend on its seed, and not on the other sources.

    Args:
        steps: a decoder that has read a batch of sources.
        rules: as many sources.
        settings: temperature and top_p.
        count: questions drawn for each source.
        seeds: of each source, integers of 64 bits.

    Returns:
        for each source its different questions, the best first, `count` at most.
    """
    draws = _draws(seeds, count, int(rules.longest.max()) + 1)
    sources = torch.arange(len(seeds)).repeat_interleave(count)
    rows = torch.arange(len(sources))  # of those that are still written
    history = torch.zeros(len(sources), 0, dtype=torch.int64)
    scores = torch.zeros(len(sources), dtype=torch.float64)
    found: list[list[Hypothesis]] = [[] for _ in seeds]
    next_words = steps.first(sources.bincount(minlength=len(seeds)))
    while True:
        log_probs = next_words.all()
        rules.apply(log_probs, history, sources)
        words = draw(log_probs, draws[rows, history.shape[1]], settings.temperature, settings.top_p)
        scores = scores + log_probs.gather(1, words[:, None]).squeeze(1).double()
        for row in ((words == rules.end) & (scores > -torch.inf)).nonzero().flatten().tolist():
            one = Hypothesis.ended(history[row].tolist(), scores[row].item(), settings.length_penalty)
            found[int(sources[row])].append(one)
        going = ((words != rules.end) & (scores > -torch.inf)).nonzero().squeeze(1)
        if not len(going):
            return [best(of_source) for of_source in found]
        words, sources, rows, scores = words[going], sources[going], rows[going], scores[going]
        history = torch.cat([history[going], words[:, None]], 1)
        next_words = steps.next(going, words, sources.bincount(minlength=len(seeds)))


def draw(log_probs: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """One word for each row.

    Sums run in order of the words, or of the likeliest, so that columns of -inf behind them change nothing.

    Args:
        log_probs: float32 [rows, words], of probabilities that need not sum up to 1.
        uniform: float64 [rows], numbers in [0, 1).
        temperature, top_p: of `GenerationSettings`.

    Returns:
        int64 [rows]; 0 where all words have -inf.
    """
    largest = log_probs.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    weights = ((log_probs - largest) / temperature).exp().double()
    cumulative = weights.cumsum(1)
    if top_p == 1:
        return _find(cumulative, uniform * cumulative[:, -1])
    wanted = top_p * cumulative[:, -1:]
    values, words = top_words(log_probs, _LIKELIEST)
    ordered = weights.gather(1, words).masked_fill(values == -torch.inf, 0)
    chosen = _draw_from(ordered, words, wanted, uniform)
    far = (ordered.cumsum(1)[:, -1] < wanted.squeeze(1)).nonzero().squeeze(1)
    if len(far):
        words = log_probs[far].sort(dim=1, descending=True, stable=True)[1]
        chosen[far] = _draw_from(weights[far].gather(1, words), words, wanted[far], uniform[far])
    return chosen


def _draw_from(ordered: Tensor, words: Tensor, wanted: Tensor, uniform: Tensor) -> Tensor:
    """int64 [rows]: a draw from the first of `words`, with weights `ordered`, that weigh `wanted` together."""
    cumulative = ordered.cumsum(1)
    kept = torch.where(cumulative - ordered < wanted, ordered, 0).cumsum(1)
    return words.gather(1, _find(kept, uniform * kept[:, -1])[:, None]).squeeze(1)


def _find(cumulative: Tensor, place: Tensor) -> Tensor:
    """Which word `place` falls to; int64 [rows]."""
    found = torch.searchsorted(cumulative, place[:, None].contiguous(), right=True).squeeze(1)
    return torch.where(cumulative[:, -1] > 0, found.clamp(max=cumulative.shape[1] - 1), 0)


def _draws(seeds: Sequence[int], count: int, length: int) -> Tensor:
    """float64 [sources * count, length]; a source's draws of a question are the same whatever the others' lengths."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(length, count, generator=generator, dtype=torch.float64).T)
    return torch.cat(rows)
