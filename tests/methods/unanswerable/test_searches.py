"""Beam search and draws over made-up probabilities: against all sequences there are, and against each source alone."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vleff.unanswerable.beam_search import beam_search
from vleff.unanswerable.decoding import DenseWords, Rules
from vleff.unanswerable.generation import GenerationSettings, Hypothesis
from vleff.unanswerable.sampling import draw, sample

END, UNKNOWN, START = range(3)


class Table:
    """Steps whose next word depends on the source, on how many words there are and on the last two.

    Args:
        tables: for each source [lengths, words, words, words]: number of words, last but one, last -> log-probabilities
            of the next.
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.tables = tables
        self.last: list[tuple[int, int]] = []
        self.steps = self.rows = 0

    def first(self, per_source: Tensor) -> DenseWords:
        self.steps = 0
        self.last = [(START, START)] * int(per_source.sum())
        return self._rows(per_source)

    def next(self, parents: Tensor, words: Tensor, per_source: Tensor) -> DenseWords:
        self.last = [
            (self.last[parent][1], word) for parent, word in zip(parents.tolist(), words.tolist(), strict=True)
        ]
        return self._rows(per_source)

    def _rows(self, per_source: Tensor) -> DenseWords:
        sources = torch.arange(len(per_source)).repeat_interleave(per_source).tolist()
        assert len(sources) == len(self.last)
        rows = [self.tables[source][self.steps][last] for source, last in zip(sources, self.last, strict=True)]
        self.steps, self.rows = self.steps + 1, self.rows + len(sources)
        return DenseWords(torch.stack(rows))


def random_table(words: int, sharpness: float = 2.0) -> Tensor:
    return (torch.randn(13, words, words, words) * sharpness).log_softmax(3)


def row_after(table: Tensor, words: Sequence[int]) -> Tensor:
    return table[len(words)][tuple([START, START, *words][-2:])].clone()


def log_prob(table: Tensor, words: Sequence[int]) -> float:
    ended = [*words, END]
    return sum(row_after(table, ended[:place])[word].double().item() for place, word in enumerate(ended))


def all_sequences(table: Tensor, longest: int, allowed: Callable[[tuple[int, ...]], bool]) -> list[Hypothesis]:
    """Every sequence of words that are not special, the best first."""
    words = range(3, table.shape[-1])
    every = (one for length in range(1, longest + 1) for one in product(words, repeat=length))
    found = [Hypothesis.ended(one, log_prob(table, one), 1.0) for one in every if allowed(one)]
    return sorted(found, key=lambda one: -one.score)


def assert_same(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    assert [one.words for one in found] == [one.words for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5) and one.log_prob == pytest.approx(
            other.log_prob, abs=1e-5
        )


def has_no_repetition(size: int) -> Callable[[tuple[int, ...]], bool]:
    def check(words: tuple[int, ...]) -> bool:
        grams = [words[i : i + size] for i in range(len(words) - size + 1)]
        return len(set(grams)) == len(grams)

    return check


@pytest.mark.parametrize("no_repeat", [0, 1, 2])
def test_with_beams_for_all_it_finds_the_best_of_all_sequences(no_repeat: int) -> None:
    tables = [random_table(6) for _ in range(4)]
    copied = [(3, 4), (5,), (4, 4, 3), (3, 3, 3, 3, 3, 3)]
    longest = [4, 3, 1, 2]
    settings = GenerationSettings(beams=200)
    found = beam_search(Table(tables), Rules(copied, longest, no_repeat), settings, 1)
    for table, source, words, length in zip(tables, copied, found, longest, strict=True):
        is_new = has_no_repetition(no_repeat) if no_repeat else lambda one: True
        expected = all_sequences(table, length, lambda one, s=source, n=is_new: one != s and n(one))
        assert len(expected) == len(words)
        assert_same(words, expected)


def reference_search(table: Tensor, beams: int, longest: int, penalty: float) -> list[Hypothesis]:
    """The definition of `beam_search` for one source and one group, without rules, in lists."""
    going: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    found: list[Hypothesis] = []
    for written in range(longest + 1):
        candidates = []
        for total, words in going:
            row = row_after(table, words).double().tolist()
            for word in range(table.shape[-1]):
                is_allowed = word not in (UNKNOWN, START) and (
                    word == END if written == longest else word != END or words
                )
                if is_allowed:
                    candidates.append((total + row[word], (*words, word)))
        candidates.sort(key=lambda one: -one[0])
        for total, words in candidates[:beams]:
            if words[-1] == END:
                found.append(Hypothesis.ended(words[:-1], total, penalty))
        found = sorted(found, key=lambda one: -one.score)[:beams]
        going = [one for one in candidates if one[1][-1] != END][:beams]
        if not going or (len(found) == beams and max(going)[0] / (written + 2) ** penalty <= found[-1].score):
            break
    return found


@given(
    words=st.integers(4, 12),
    sources=st.integers(1, 5),
    beams=st.integers(1, 6),
    longest=st.lists(st.integers(1, 7), min_size=5, max_size=5),
    penalty=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    sharpness=st.sampled_from([0.5, 2.0, 6.0]),
)
def test_it_is_the_search_that_is_described(
    words: int, sources: int, beams: int, longest: list[int], penalty: float, sharpness: float
) -> None:
    tables = [random_table(words, sharpness) for _ in range(sources)]
    settings = GenerationSettings(beams=beams, length_penalty=penalty)
    found = beam_search(Table(tables), Rules(None, longest[:sources], 0), settings, 1)
    for table, hypotheses, length in zip(tables, found, longest, strict=False):
        assert_same(hypotheses, reference_search(table, beams, length, penalty))


def test_greedy_takes_the_likeliest_word() -> None:
    table = random_table(9)
    (found,) = beam_search(Table([table]), Rules(None, [5], 0), GenerationSettings(beams=1, length_penalty=0), 1)
    words: list[int] = []
    while True:
        row = row_after(table, words)
        row[[UNKNOWN, START]] = -torch.inf
        if not words:
            row[END] = -torch.inf
        word = END if len(words) == 5 else int(row.argmax())
        if word == END:
            break
        words.append(word)
    assert [one.words for one in found] == [tuple(words)]


def random_rules(sources: int) -> Rules:
    copied = [torch.randint(3, 8, (n,)).tolist() for n in torch.randint(1, 6, (sources,)).tolist()]
    return Rules(copied, torch.randint(1, 9, (sources,)).tolist(), 2)


def rules_of(rules: Rules, source: int) -> Rules:
    assert rules.sources is not None and rules.lengths is not None
    words = rules.sources[source, : rules.lengths[source]].tolist()
    return Rules([words], [int(rules.longest[source])], rules.no_repeat)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_source_does_not_depend_on_the_others(groups: int) -> None:
    tables, rules = [random_table(8) for _ in range(7)], random_rules(7)
    settings = GenerationSettings(beams=3, groups=groups)
    together = beam_search(Table(tables), rules, settings, 2)
    for source, table in enumerate(tables):
        alone = beam_search(Table([table]), rules_of(rules, source), settings, 2)
        assert alone == [together[source]]
    draws = sample(Table(tables), rules, GenerationSettings(sample=True, top_p=0.8), 4, range(7))
    for source, table in enumerate(tables):
        settings = GenerationSettings(sample=True, top_p=0.8)
        assert sample(Table([table]), rules_of(rules, source), settings, 4, [source]) == [draws[source]]


def test_sources_that_are_done_leave_the_batch() -> None:
    tables = [random_table(8) for _ in range(5)]
    for table in tables[1:]:
        table[..., 3:] -= 40  # the end comes at once
    steps = Table(tables)
    beam_search(steps, Rules(None, [12] * 5, 0), GenerationSettings(beams=2), 1)
    alone = Table(tables[:1])
    beam_search(alone, Rules(None, [12], 0), GenerationSettings(beams=2), 1)
    assert steps.steps == alone.steps and steps.rows < alone.rows + 5 * 8


def test_more_questions_than_beams() -> None:
    tables = [random_table(9) for _ in range(2)]
    found = beam_search(Table(tables), Rules(None, [5, 5], 0), GenerationSettings(beams=2), 6)
    wide = beam_search(Table(tables), Rules(None, [5, 5], 0), GenerationSettings(beams=6), 1)
    assert found == wide and all(len(one) == 6 for one in found)


def test_nothing_is_found_where_nothing_is_allowed() -> None:
    table = random_table(4)
    assert beam_search(Table([table]), Rules([(3,)], [1], 0), GenerationSettings(), 1) == [[]]
    assert sample(Table([table]), Rules([(3,)], [1], 0), GenerationSettings(), 3, [1]) == [[]]


def reference_groups(table: Tensor, settings: GenerationSettings, longest: int) -> list[tuple[int, ...]]:
    """Diverse beam search with one beam a group, in lists: the words of each group."""
    words: list[list[int]] = [[] for _ in range(settings.groups)]
    done = [False] * settings.groups
    for written in range(longest + 1):
        taken = torch.zeros(table.shape[-1])
        for group, so_far in enumerate(words):
            if done[group]:
                continue
            row = row_after(table, so_far) - settings.diversity * taken
            row[[UNKNOWN, START]] = -torch.inf
            if not so_far:
                row[END] = -torch.inf
            word = END if written == longest else int(row.argmax())
            if word == END:
                done[group] = True
            else:
                so_far.append(word)
                taken[word] += 1
    return [tuple(one) for one in words]


def test_groups_avoid_what_groups_before_them_chose() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        table = random_table(12, 1.0)
        table[..., END] -= 2
        settings = GenerationSettings(beams=4, groups=4, diversity=1.5, length_penalty=0.0)
        (found,) = beam_search(Table([table]), Rules(None, [3], 0), settings, 4)
        expected = reference_groups(table, settings, 3)
        for one in found:
            assert one.log_prob == pytest.approx(log_prob(table, one.words), abs=1e-5)
        assert {one.words for one in found} == set(expected)
        same = GenerationSettings(beams=4, groups=4, diversity=0.0)
        (equal,) = beam_search(Table([table]), Rules(None, [3], 0), same, 4)
        assert len(equal) == 1


def test_draws_have_the_probabilities() -> None:
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]).log()
    uniform = (torch.arange(10_000).double() + 0.5) / 10_000

    def shares(**options: Any) -> list[float]:
        words = draw(log_probs.expand(10_000, -1), uniform, **{"temperature": 1.0, "top_p": 1.0, **options})
        return [round(share, 3) for share in (words.bincount(minlength=5) / 10_000).tolist()]

    assert shares() == [0.5, 0.3, 0.15, 0.05, 0]
    assert shares(top_p=0.8) == [0.625, 0.375, 0, 0, 0]
    assert shares(top_p=0.81) == [0.526, 0.316, 0.158, 0, 0]
    assert shares(top_p=0.01) == [1, 0, 0, 0, 0]
    squares = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert shares(temperature=0.5) == [*[round(x, 3) for x in (squares / squares.sum()).tolist()], 0]


def test_draws_from_many_words() -> None:
    """Those of top_p are more than are looked at first; columns of -inf change nothing."""
    log_probs = (torch.randn(50, 3000) * 0.1).log_softmax(1)
    uniform = torch.rand(50).double()
    words = draw(log_probs, uniform, 1.0, 0.6)
    for row, place, word in zip(log_probs, uniform.tolist(), words.tolist(), strict=True):
        probabilities, order = row.double().exp().sort(descending=True, stable=True)
        kept = probabilities[probabilities.cumsum(0) - probabilities < 0.6]
        nearest = (kept.cumsum(0) / kept.sum() - place).abs().min()
        index = int((kept.cumsum(0) / kept.sum() <= place).sum())
        assert order[index] == word or nearest < 1e-6
    for top_p in (0.6, 1.0):
        wider = torch.cat([log_probs, torch.full((50, 77), -torch.inf)], 1)
        assert torch.equal(draw(wider, uniform, 1.0, top_p), draw(log_probs, uniform, 1.0, top_p))


def test_draws_differ_by_seed() -> None:
    tables = [random_table(30, 1.0)] * 2
    rules = Rules(None, [8, 8], 0)
    first, second = sample(Table(tables), rules, GenerationSettings(), 5, [1, 2])
    assert first != second and len(first) == 5
    assert [one.score for one in first] == sorted((one.score for one in first), reverse=True)
    for one in first:
        assert one.log_prob == pytest.approx(log_prob(tables[0], one.words), abs=1e-4)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("beams", 0),
        ("groups", 6),
        ("groups", 0),
        ("diversity", -1.0),
        ("length_penalty", -0.1),
        ("no_repeat", -1),
        ("extra_words", -1),
        ("max_words", 0),
        ("temperature", 0.0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("batch", 0),
    ],
)
def test_bad_settings(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"argument '{argument}': expected .+, got "):
        GenerationSettings(**{argument: value})
