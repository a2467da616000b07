"""Evaluates generators on pairs of questions, beside copying the input and swaps."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import track

from vleff.unanswerable.answerability import AnswerabilityReader
from vleff.unanswerable.generation import QuestionGenerator
from vleff.unanswerable.metrics import bleu, copy_rate, gleu, repetition_rate, rouge_l
from vleff.unanswerable.pairs import QuestionPair
from vleff.unanswerable.swaps import SwapGenerator
from vleff.unanswerable.training import source_of

PEOPLE, COPY, SWAPS = "people", "copy the input", "swaps"
HEADINGS = {
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "gleu_3": "GLEU-3",
    "gleu_4": "GLEU-4",
    "repeats": "repeats",
    "copied": "copied",
    "missing": "missing",
    "unanswerable": "NoAns",
}


@dataclass(frozen=True)
class GenerationScores:
    """The scores of one generator, each 0 to 100.

    Attributes:
        bleu_3, bleu_4, rouge_l, gleu_3, gleu_4: likeness to the questions that people wrote; GLEU also counts what
            was left as it was in the source.
        repeats: share of questions that say something twice.
        copied: share of questions that are their sources.
        missing: share of sources for which nothing was generated; they are copied.
        unanswerable: share of questions that a reader finds unanswerable; None without a reader.
    """

    bleu_3: float
    bleu_4: float
    rouge_l: float
    gleu_3: float
    gleu_4: float
    repeats: float
    copied: float
    missing: float
    unanswerable: float | None = None


def evaluate(
    generators: dict[str, QuestionGenerator],
    pairs: Sequence[QuestionPair],
    reader: AnswerabilityReader | None = None,
    threshold: float = 0.0,
    batch: int = 32,
    quiet: bool = False,
) -> dict[str, GenerationScores]:
    """Scores generators, and always people, copying the input and swaps, on the same pairs.

    Args:
        generators: by name.
        pairs: that the generators were not trained on.
        reader: says which questions are unanswerable.
        threshold: of `AnswerabilityReader.null_margins`.
        batch: sources at a time.
        quiet: without a progress bar.

    Returns:
        scores by name, first those of people (the pairs' own unanswerable questions), copies and swaps.

    Raises:
        ImportError: sacrebleu or rouge-score is not installed.
        ValueError: there are no pairs, or a generator has a name of the rows that are always there.
    """
    if not pairs:
        raise ValueError("argument 'pairs': expected at least one, got none")
    for name in (PEOPLE, COPY, SWAPS):
        if name in generators:
            raise ValueError(f"argument 'generators': the name {name!r} is taken")
    sources = [pair.answerable for pair in pairs]
    outputs: dict[str, list[str | None]] = {PEOPLE: [pair.unanswerable for pair in pairs], COPY: [*sources]}
    for name, generator in {SWAPS: SwapGenerator(), **generators}.items():
        outputs[name] = _generate(generator, name, pairs, batch, quiet)
    scored = {}
    for name, texts in track(outputs.items(), "scoring", transient=True, disable=quiet):
        scored[name] = _score(texts, pairs, reader, threshold)
    return scored


def _generate(
    generator: QuestionGenerator, name: str, pairs: Sequence[QuestionPair], batch: int, quiet: bool
) -> list[str | None]:
    texts: list[str | None] = []
    for first in track(range(0, len(pairs), batch), f"generating: {name}", transient=True, disable=quiet):
        found = generator.generate([source_of(pair) for pair in pairs[first : first + batch]])
        texts += [candidates[0].text if candidates else None for candidates in found]
    return texts


def _score(
    texts: Sequence[str | None],
    pairs: Sequence[QuestionPair],
    reader: AnswerabilityReader | None,
    threshold: float,
) -> GenerationScores:
    sources, references = [pair.answerable for pair in pairs], [pair.unanswerable for pair in pairs]
    outputs = [source if text is None else text for text, source in zip(texts, sources, strict=True)]
    unanswerable = None
    if reader is not None:
        margins = reader.null_margins([(text, pair.context) for text, pair in zip(outputs, pairs, strict=True)])
        unanswerable = 100 * sum(margin > threshold for margin in margins) / len(margins)
    return GenerationScores(
        bleu(outputs, references, 3),
        bleu(outputs, references, 4),
        rouge_l(outputs, references),
        gleu(outputs, references, sources, 3),
        gleu(outputs, references, sources, 4),
        repetition_rate(outputs),
        copy_rate(outputs, sources),
        100 * sum(text is None for text in texts) / len(texts),
        unanswerable,
    )
