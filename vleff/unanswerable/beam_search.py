"""Batched beam search, in one group of beams for each source or in several diverse ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vleff.ops.top_words import top_words
from vleff.unanswerable.decoding import Rules, Steps
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
    log_probs = steps.first(groups.per_source())
    while True:
        rules.apply(log_probs, groups.history.flatten(0, 1), groups.rows_sources())
        parents, words = groups.choose(log_probs)
        if not len(groups.scores):
            return groups.results()
        log_probs = steps.next(parents, words, groups.per_source())


class _Groups:
    """All groups of all sources that still search, ordered by source and by their number in it.

    Attributes:
        sources, numbers: int64 [groups], of each group.
        history: int64 [groups, beams, words so far]; 1 beam before the first word.
        scores: float64 [groups, beams], log-probabilities; -inf where there is no hypothesis.
    """

    def __init__(self, rules: Rules, settings: GenerationSettings, count: int) -> None:
        source_count = len(rules.longest)
        self.settings = settings
        self.beams = settings.group_beams(count)
        self.source_count, self.longest, self.end = source_count, rules.longest, rules.end
        self.sources = torch.arange(source_count).repeat_interleave(settings.groups)
        self.numbers = torch.arange(settings.groups).repeat(source_count)
        self.history = torch.zeros(len(self.sources), 1, 0, dtype=torch.int64)
        self.scores = torch.zeros(len(self.sources), 1, dtype=torch.float64)
        self._names = list(range(len(self.sources)))  # of groups that still search
        self._found: list[list[Hypothesis]] = [[] for _ in self._names]

    def per_source(self) -> Tensor:
        """int64 [sources], rows of each."""
        return self.sources.bincount(minlength=self.source_count) * self.scores.shape[1]

    def rows_sources(self) -> Tensor:
        """int64 [rows], whose each row is."""
        return self.sources.repeat_interleave(self.scores.shape[1])

    def choose(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Goes one word further.

        Args:
            log_probs: float32 [rows, words].

        Returns:
            parents, words: int64 [rows], of the rows from now on, as `Steps.next` takes them.
        """
        if self.settings.groups == 1 or self.settings.diversity == 0:
            scores, parents, words = self._candidates(log_probs, slice(None))
        else:
            scores, parents, words = self._diverse_candidates(log_probs)
        ends = words == self.end
        self._end(scores, parents, ends)
        # the best without end, in order: there are at most as many ends as hypotheses
        going = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.beams]
        scores = scores.masked_fill(ends, -torch.inf)
        scores, parents, words = (values.gather(1, going) for values in (scores, parents, words))
        before = self.history.gather(1, parents[..., None].expand(-1, -1, self.history.shape[2]))
        parents = parents + torch.arange(len(parents))[:, None] * self.history.shape[1]
        self.history = torch.cat([before, words[..., None]], 2)
        self.scores = scores
        searching = self._searching()
        for name in ("sources", "numbers", "history", "scores"):
            setattr(self, name, getattr(self, name)[searching])
        self._names = [name for name, still in zip(self._names, searching.tolist(), strict=True) if still]
        return parents[searching].flatten(), words[searching].flatten()

    def results(self) -> list[list[Hypothesis]]:
        """For each source what its groups found."""
        groups = self.settings.groups
        found = [self._found[first : first + groups] for first in range(0, len(self._found), groups)]
        return [best([one for group in of_source for one in group]) for of_source in found]

    def _candidates(self, log_probs: Tensor, chosen: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of some groups: scores, beams and words [groups, 2 * beams], the best first."""
        most = 2 * self.beams
        values, words = top_words(log_probs, most)
        before = self.scores[chosen]
        scores = before[:, :, None] + values.double().unflatten(0, before.shape)
        scores, places = scores.flatten(1).sort(dim=1, descending=True, stable=True)
        scores, places = scores[:, :most], places[:, :most]
        return scores, places // most, words.view(len(before), -1).gather(1, places)

    def _diverse_candidates(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One group of each source after the other, the words chosen before made less likely."""
        beams = self.scores.shape[1]
        rows = log_probs.unflatten(0, (-1, beams))
        shape = len(self.sources), 2 * self.beams
        scores, parents, words = torch.empty(shape).double(), torch.empty(shape).long(), torch.empty(shape).long()
        taken = torch.zeros(self.source_count, log_probs.shape[1])  # how often a word was chosen in this step
        for number in range(self.settings.groups):
            chosen = (self.numbers == number).nonzero().squeeze(1)
            if not len(chosen):
                continue
            sources = self.sources[chosen]
            lost = self.settings.diversity * taken[sources]  # [groups, words]
            _, parents[chosen], words[chosen] = self._candidates((rows[chosen] - lost[:, None]).flatten(0, 1), chosen)
            groups, hypotheses = chosen[:, None], parents[chosen]
            scores[chosen] = self.scores[groups, hypotheses] + rows[groups, hypotheses, words[chosen]].double()
            going = (words[chosen] != self.end).cumsum(1) <= self.beams
            going &= (words[chosen] != self.end) & (scores[chosen] > -torch.inf)
            taken.index_put_((sources[:, None].expand_as(going), words[chosen]), going.float(), accumulate=True)
        return scores, parents, words

    def _end(self, scores: Tensor, parents: Tensor, ends: Tensor) -> None:
        """Takes note of what ends among the best."""
        ended = ends[:, : self.beams] & (scores[:, : self.beams] > -torch.inf)
        for group, rank in ended.nonzero().tolist():
            words = self.history[group, parents[group, rank]].tolist()
            found = self._found[self._names[group]]
            found.append(Hypothesis.ended(words, scores[group, rank].item(), self.settings.length_penalty))
            self._found[self._names[group]] = best(found)[: self.beams]

    def _searching(self) -> Tensor:
        """bool [groups], which have to go on."""
        written = self.history.shape[2]
        with_end = self.scores.amax(1) / (written + 1) ** self.settings.length_penalty
        worst = torch.tensor([self._worst(self._found[name]) for name in self._names], dtype=torch.float64)
        return (with_end > worst) & (self.longest[self.sources] >= written)

    def _worst(self, found: Sequence[Hypothesis]) -> float:
        return found[-1].score if len(found) == self.beams else -torch.inf
