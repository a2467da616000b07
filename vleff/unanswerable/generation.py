"""What generators of questions have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vleff.unanswerable.sources import Candidate, GenerationSource

Item = TypeVar("Item")
Result = TypeVar("Result")


class QuestionGenerator(Protocol):
    """Writes questions from sources: a PairToSequence, a Seq2SeqGenerator, or anything with this method."""

    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        """For each source at most `count` different questions, the best first."""
        ...


@dataclass(frozen=True)
class GenerationSettings:
    """How a decoder searches.

    Attributes:
        beams: hypotheses at a time for a source; where more questions are asked for, as many as these. One of them
            with a length penalty of 0 always takes the likeliest word.
        groups: of beams, each of which is told what those before it chose (diverse beam search, arXiv 1610.02424).
        diversity: what a group loses in log-probability for a word that a group before it chose in the same place.
        length_penalty: a question's score is its log-probability divided by its length to this power.
        no_repeat: no n-gram of this size is there twice in a question; 0 allows all.
        may_copy: whether a question may be the source's question, word by word.
        extra_words: by how many words a question may be longer than the source's.
        max_words: of a question, at most.
        sample: draws words, instead of searching for the likeliest.
        temperature: of draws; below 1 likely words become likelier.
        top_p: draws are from the likeliest words that have this probability together.
        seed: of draws.
        batch: sources at a time.

    Raises:
        ValueError: a value is out of its range.
    """

    beams: int = 5
    groups: int = 1
    diversity: float = 0.5
    length_penalty: float = 1.0
    no_repeat: int = 3
    may_copy: bool = False
    extra_words: int = 10
    max_words: int = 40
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("beams", self.beams >= 1, "at least 1"),
            ("groups", 1 <= self.groups <= self.beams, f"1 to beams = {self.beams}"),
            ("diversity", self.diversity >= 0, "at least 0"),
            ("length_penalty", self.length_penalty >= 0, "at least 0"),
            ("no_repeat", self.no_repeat >= 0, "at least 0"),
            ("extra_words", self.extra_words >= 0, "at least 0"),
            ("max_words", self.max_words >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0"),
            ("batch", self.batch >= 1, "at least 1"),
        ):
            if not fits:
                raise ValueError(f"argument '{name}': expected {expected}, got {getattr(self, name)}")

    def group_beams(self, count: int) -> int:
        """Beams of each group, where `count` questions are asked for."""
        return -(-max(self.beams, count) // self.groups)

    def longest(self, question_words: int) -> int:
        """How many words a question may have that is made from one of so many."""
        return min(self.max_words, question_words + self.extra_words)


@dataclass(frozen=True)
class Hypothesis:
    """A question as numbers of words.

    Attributes:
        words: of the sample's extended vocabulary, without the end.
        log_prob: its logarithm of probability, end included.
        score: log_prob divided by the length, end included, to the power of the length penalty.
    """

    words: tuple[int, ...]
    log_prob: float
    score: float

    @classmethod
    def ended(cls, words: Sequence[int], log_prob: float, length_penalty: float) -> "Hypothesis":
        """Of words to which the end was added."""
        return cls(tuple(words), log_prob, log_prob / (len(words) + 1) ** length_penalty)


def best(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Different hypotheses, the best first; of equal scores in the order of their words."""
    different = {one.words: one for one in hypotheses}
    return sorted(different.values(), key=lambda one: (-one.score, one.words))


def different(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first `count` with different texts; none is empty."""
    texts: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.text.strip():
            texts.setdefault(candidate.text, candidate)
    return list(texts.values())[:count]


def in_batches(
    items: Sequence[Item], size: int, length: Callable[[Item], int], run: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """Results in the order of the items, which run in batches of similar length."""
    order = sorted(range(len(items)), key=lambda number: length(items[number]))
    results: dict[int, Result] = {}
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        results.update(zip(numbers, run([items[number] for number in numbers]), strict=True))
    return [results[number] for number in range(len(items))]


def checked_count(count: int) -> int:
    """`count` if questions can be asked for in that number.

    Raises:
        ValueError: it is below 1.
    """
    if count < 1:
        raise ValueError(f"argument 'count': expected at least 1, got {count}")
    return count
