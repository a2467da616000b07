"""Batched beam search, in one group of beams for each source or in several diverse ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vleff.unanswerable.decoding import NO_WORD, NextWords, Rules, Steps
from vleff.unanswerable.generation import GenerationSettings, Hypothesis, best


def beam_search(steps: Steps, rules: Rules, settings: GenerationSettings, count: int) -> list[list[Hypothesis]]:
    """The best questions that a beam search finds for each source.

    A group of B beams goes on with the B likeliest words without end that follow on its hypotheses; what ends among
    the B likeliest is a question. A group stops when it has B questions, all at least as good as its best hypothesis
    with the end added for nothing. It then leaves the batch, so that the others' steps become cheaper; a source's
    result does not depend on the others.

    Args:
        steps: a decoder that has read a batch of sources.
        rules: as many sources.
        settings: beams, groups, diversity and length penalty.
        count: questions asked for.

    Returns:
        for each source its questions, the best first; usually as many as there are beams, none where the rules leave
        nothing to write.
    """
    groups = _Groups(rules, settings, count)
    next_words = steps.first(groups.per_source())
    while True:
        parents, words = groups.choose(next_words)
        if not len(groups.scores):
            return groups.results()
        next_words = steps.next(parents, words, groups.per_source())


class _Candidates(NamedTuple):
    """Continuations of groups, [groups, candidates] each: scores, the beams that they go on from, and words."""

    scores: Tensor
    parents: Tensor
    words: Tensor

    def best(self, count: int, less: Tensor | float = 0.0) -> "_Candidates":
        """The best ones by scores - less, the best first."""
        places = (self.scores - less).sort(dim=1, descending=True, stable=True)[1][:, :count]
        return self.at(places)

    def at(self, places: Tensor) -> "_Candidates":
        """Those at places [groups, any number]."""
        return _Candidates(*(values.gather(1, places) for values in self))


class _Groups:
    """All groups of all sources that still search, ordered by source and by their number in it.

    Attributes:
        sources, numbers: int64 [groups], of each group.
        history: int64 [groups, beams, words so far]; 1 beam before the first word.
        scores: float64 [groups, beams], log-probabilities; -inf where there is no hypothesis.
    """

    def __init__(self, rules: Rules, settings: GenerationSettings, count: int) -> None:
        self.rules, self.settings = rules, settings
        self.beams = settings.group_beams(count)
        self.source_count = len(rules.longest)
        self.sources = torch.arange(self.source_count).repeat_interleave(settings.groups)
        self.numbers = torch.arange(settings.groups).repeat(self.source_count)
        self.history = torch.zeros(len(self.sources), 1, 0, dtype=torch.int64)
        self.scores = torch.zeros(len(self.sources), 1, dtype=torch.float64)
        self._names = list(range(len(self.sources)))  # of groups that still search
        self._found: list[list[Hypothesis]] = [[] for _ in self._names]

    def per_source(self) -> Tensor:
        """int64 [sources], rows of each."""
        return self.sources.bincount(minlength=self.source_count) * self.scores.shape[1]

    def choose(self, next_words: NextWords) -> tuple[Tensor, Tensor]:
        """Goes one word further.

        Returns:
            parents, words: int64 [rows], of the rows from now on, as `Steps.next` takes them.
        """
        candidates = self._candidates(next_words)
        is_diverse = self.settings.groups > 1 and self.settings.diversity > 0
        chosen = self._diverse(candidates) if is_diverse else candidates.best(2 * self.beams)
        ends = chosen.words == self.rules.end
        self._end(chosen, ends)
        # the best without end, in order: there are at most as many ends as hypotheses
        going = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.beams]
        self.scores, parents, words = chosen._replace(scores=chosen.scores.masked_fill(ends, -torch.inf)).at(going)
        before = self.history.gather(1, parents[..., None].expand(-1, -1, self.history.shape[2]))
        parents = parents + torch.arange(len(parents))[:, None] * self.history.shape[1]
        self.history = torch.cat([before, words[..., None]], 2)
        searching = self._searching()
        if not searching.all():
            for name in ("sources", "numbers", "history", "scores"):
                setattr(self, name, getattr(self, name)[searching])
            parents, words = parents[searching], words[searching]
            self._names = [name for name, still in zip(self._names, searching.tolist(), strict=True) if still]
        return parents.flatten(), words.flatten()

    def results(self) -> list[list[Hypothesis]]:
        """For each source what its groups found."""
        groups = self.settings.groups
        found = [self._found[first : first + groups] for first in range(0, len(self._found), groups)]
        return [best([one for group in of_source for one in group]) for of_source in found]

    def _candidates(self, next_words: NextWords) -> _Candidates:
        """For each hypothesis enough continuations that the rules allow, of which each group can choose its best."""
        history, sources = self.history.flatten(0, 1), self.sources.repeat_interleave(self.scores.shape[1])
        forbidden = self.rules.forbidden(history, sources)
        most = 2 * self.beams + int((forbidden != NO_WORD).sum(1).max())
        if self.settings.diversity > 0:  # words that groups before have chosen
            most += (self.settings.groups - 1) * self.beams
        log_probs, words, of_end = next_words.likeliest(most, self.rules.end)
        log_probs = log_probs.masked_fill((words[..., None] == forbidden[:, None]).any(2), -torch.inf)
        must_end = self.rules.must_end(history, sources)
        if must_end.any():
            may_end = (forbidden != self.rules.end).all(1)
            log_probs = log_probs.masked_fill(must_end[:, None], -torch.inf)
            words[must_end, 0] = self.rules.end
            log_probs[:, 0] = torch.where(must_end & may_end, of_end, log_probs[:, 0])
        groups, beams = self.scores.shape
        scores = self.scores[..., None] + log_probs.double().view(groups, beams, most)
        parents = torch.arange(beams).repeat_interleave(most).expand(groups, -1)
        return _Candidates(scores.flatten(1), parents, words.view(groups, -1))

    def _diverse(self, candidates: _Candidates) -> _Candidates:
        """The best candidates, one group of each source after the other, words that were chosen before less likely."""
        count = 2 * self.beams
        chosen = _Candidates(*(values[:, :1].repeat(1, count) for values in candidates))
        taken = torch.full((self.source_count, self.settings.groups * self.beams), NO_WORD)
        for number in range(self.settings.groups):
            groups = (self.numbers == number).nonzero().squeeze(1)
            own, sources = _Candidates(*(values[groups] for values in candidates)), self.sources[groups]
            times = (own.words[..., None] == taken[sources, None]).sum(2)
            best_of_group = own.best(count, self.settings.diversity * times)
            for values, of_group in zip(chosen, best_of_group, strict=True):
                values[groups] = of_group
            goes_on = (best_of_group.words != self.rules.end) & (best_of_group.scores > -torch.inf)
            goes_on &= goes_on.cumsum(1) <= self.beams
            order = goes_on.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : self.beams]
            words = best_of_group.words.masked_fill(~goes_on, NO_WORD).gather(1, order)
            taken[sources, number * self.beams : (number + 1) * self.beams] = words
        return chosen

    def _end(self, chosen: _Candidates, ends: Tensor) -> None:
        """Takes note of what ends among the best."""
        ended = ends[:, : self.beams] & (chosen.scores[:, : self.beams] > -torch.inf)
        for group, rank in ended.nonzero().tolist():
            words = self.history[group, chosen.parents[group, rank]].tolist()
            one = Hypothesis.ended(words, chosen.scores[group, rank].item(), self.settings.length_penalty)
            name = self._names[group]
            self._found[name] = best([*self._found[name], one])[: self.beams]

    def _searching(self) -> Tensor:
        """bool [groups], which have to go on."""
        written = self.history.shape[2]
        with_end = self.scores.amax(1) / (written + 1) ** self.settings.length_penalty
        worst = torch.tensor([self._worst(self._found[name]) for name in self._names], dtype=torch.float64)
        return (with_end > worst) & (self.rules.longest[self.sources] >= written)

    def _worst(self, found: Sequence[Hypothesis]) -> float:
        return found[-1].score if len(found) == self.beams else -torch.inf
