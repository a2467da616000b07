"""Unanswerable questions for paragraphs: generated, compared with what is there, filtered by a reader."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vleff.data.squad import Paragraph, Question, question_json
from vleff.unanswerable.generators import GeneratorRecipe
from vleff.unanswerable.sources import Candidate, GenerationSource
from vleff.unanswerable.words import lower_words

Item = TypeVar("Item")
Result = TypeVar("Result")

# what became of candidates; the names are those of the report
KEPT, EMPTY, UNCHANGED, REPEATED, ANSWERABLE, SURPLUS, FAILED = (
    "kept",
    "empty",
    "unchanged",
    "repeated",
    "answerable",
    "surplus",
    "failed",
)
_MOST_FAILURES = 20  # in a row: then it is not the data


@dataclass(frozen=True)
class AugmentationSettings:
    """How a corpus is augmented.

    Attributes:
        candidates: that the generator is asked for, for each answerable question.
        kept: most that are kept of them, the best first.
        reader: the reader that filters, a checkpoint; None keeps all.
        threshold: by how much "no answer" has to beat the reader's best answer, in logits.
        max_length, stride: of the windows that the reader sees, in tokens.
        batch: questions at a time; makes no difference to the result.
    """

    candidates: int = 1
    kept: int = 1
    reader: str | None = None
    threshold: float = 0.0
    max_length: int = 384
    stride: int = 128
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("candidates", "kept", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.kept > self.candidates:
            raise ValueError(f"kept: expected at most {self.candidates}, the candidates, got {self.kept}")


@dataclass
class Augmented:
    """What became of a paragraph.

    Attributes:
        questions: generated, as SQuAD 2.0 files have them, with a "provenance".
        counts: how many candidates met which end.
        failures: ids of source questions, and why nothing came of them.
    """

    questions: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)


class Augmenter:
    """Writes unanswerable questions next to the answerable ones of paragraphs.

    Args:
        recipe: of the generator, which is loaded now.
        settings: the reader in them is loaded now, too.
    """

    def __init__(self, recipe: GeneratorRecipe, settings: AugmentationSettings) -> None:
        self.recipe, self.settings = recipe, settings
        generator = recipe.load()
        self._generate = _Patient[GenerationSource, list[Candidate]](
            lambda sources: generator.generate(sources, count=settings.candidates)
        )
        self._margins = None
        if settings.reader is not None:
            from vleff.unanswerable.answerability import AnswerabilityReader  # transformers take seconds to load

            options = {"max_length": settings.max_length, "stride": settings.stride}
            reader = AnswerabilityReader.from_pretrained(settings.reader, batch=settings.batch, **options)
            self._margins = _Patient[tuple[str, str], float](reader.null_margins)

    def __call__(self, paragraphs: Sequence[Paragraph]) -> list[Augmented]:
        """What comes of each paragraph; the generator and the reader see all at once.

        A source question that the generator or the reader fails on is named in `failures`. The same paragraph has the
        same result, whatever others it comes with.

        Raises:
            ValueError: the generator or the reader failed on 20 questions in a row.
        """
        results = [Augmented() for _ in paragraphs]
        jobs = [
            (number, question)
            for number, paragraph in enumerate(paragraphs)
            for question in paragraph.questions
            if question.answers
        ]
        sources = [_source(paragraphs[number].context, question) for number, question in jobs]
        drafts: list[_Draft] = []
        seen = [{tuple(lower_words(one.text)) for one in paragraph.questions} for paragraph in paragraphs]
        for (number, question), candidates in zip(jobs, self._generate(sources), strict=True):
            if isinstance(candidates, Exception):
                results[number].failures.append((question.id, _reason(candidates)))
                continue
            for candidate in sorted(candidates, key=lambda one: -one.score):
                end = _fault(candidate, question, seen[number])
                if end is None:
                    drafts.append(_Draft(number, question, candidate))
                else:
                    results[number].counts[end] += 1
        self._filter(drafts, paragraphs, results)
        return results

    def _filter(self, drafts: list["_Draft"], paragraphs: Sequence[Paragraph], results: list[Augmented]) -> None:
        margins: Sequence[float | Exception | None] = [None] * len(drafts)
        if self._margins is not None:
            margins = self._margins([(one.candidate.text, paragraphs[one.paragraph].context) for one in drafts])
        kept: Counter[tuple[int, str]] = Counter()
        for draft, margin in zip(drafts, margins, strict=True):
            result, key = results[draft.paragraph], (draft.paragraph, draft.source.id)
            if isinstance(margin, Exception):
                result.counts[FAILED] += 1
                result.failures.append((draft.source.id, _reason(margin)))
            elif margin is not None and not margin > self.settings.threshold:
                result.counts[ANSWERABLE] += 1
            elif kept[key] >= self.settings.kept:
                result.counts[SURPLUS] += 1
            else:
                kept[key] += 1
                result.counts[KEPT] += 1
                result.questions.append(self._record(draft, paragraphs[draft.paragraph].context, margin))

    def _record(self, draft: "_Draft", context: str, margin: float | None) -> dict[str, Any]:
        text, source = draft.candidate.text.strip(), draft.source
        made_from = (self.recipe.name, self.recipe.version, source.id, context, text)
        id = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:24]
        provenance: dict[str, Any] = {
            "generator": self.recipe.name,
            "version": self.recipe.version,
            "source": source.id,
            "score": _rounded(draft.candidate.score),
        }
        if margin is not None:
            provenance["no_answer_margin"] = _rounded(margin)
        return question_json(Question(id, text, (), source.answers[:1], True)) | {"provenance": provenance}


@dataclass(frozen=True)
class _Draft:
    paragraph: int
    source: Question
    candidate: Candidate


class _Patient(Generic[Item, Result]):
    """Calls a function of many items; where it fails, of each by itself, and gives the errors back.

    Raises:
        ValueError: by itself, 20 items in a row failed.
    """

    def __init__(self, function: Callable[[Sequence[Item]], list[Result]]) -> None:
        self._function, self._in_a_row = function, 0

    def __call__(self, items: Sequence[Item]) -> list[Result | Exception]:
        if not items:
            return []
        try:
            return list(self._call(items))
        except Exception:
            return list(self._one_by_one(items))

    def _call(self, items: Sequence[Item]) -> list[Result]:
        results = self._function(items)
        if len(results) != len(items):
            raise ValueError(f"expected a result for each of {len(items)} questions, got {len(results)}")
        self._in_a_row = 0
        return results

    def _one_by_one(self, items: Sequence[Item]) -> Iterator[Result | Exception]:
        for item in items:
            try:
                yield self._call([item])[0]
            except Exception as error:
                self._in_a_row += 1
                if self._in_a_row >= _MOST_FAILURES:
                    raise ValueError(f"{_MOST_FAILURES} questions in a row failed, the last: {error}") from error
                yield error


def _source(context: str, question: Question) -> GenerationSource:
    answer = question.answers[0]
    return GenerationSource(question.text, context, answer.text, answer.start)


def _fault(candidate: Candidate, source: Question, seen: set[tuple[str, ...]]) -> str | None:
    words = tuple(lower_words(candidate.text))
    if not words:
        return EMPTY
    if words == tuple(lower_words(source.text)):
        return UNCHANGED
    if words in seen:
        return REPEATED
    seen.add(words)
    return None


def _rounded(number: float) -> float | None:
    return round(number, 4) if math.isfinite(number) else None  # JSON knows no others


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
