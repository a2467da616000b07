"""Writes the augmented SQuAD 2.0 file from the input and the results, article by article."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vleff.data.squad import Paragraph, question_json
from vleff.data.squad_stream import Article, BadRecord, stream_articles
from vleff.unanswerable.augmenting import Augmented


@dataclass(frozen=True)
class AugmentationReport:
    """What a job made.

    Attributes:
        paragraphs, questions, answerable: of the input, without what was left out.
        left_out: malformed parts of the input, and source questions that generator or reader failed on.
        candidates: by what became of them: "kept"; "empty"; "unchanged", the source's words; "repeated", the words of
            another question of the paragraph; "answerable", says the reader; "surplus", more than were to be kept;
            "failed", the reader could not read them.
    """

    paragraphs: int
    questions: int
    answerable: int
    left_out: int
    candidates: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.candidates.items()) if end != "kept")
        return (
            f"{self.candidates.get('kept', 0)} unanswerable questions for {self.answerable} answerable ones of "
            f"{self.paragraphs} paragraphs{f'; other candidates: {ends}' if ends else ''}; {self.left_out} left out"
        )


def result_json(paragraph: Paragraph, result: Augmented) -> str:
    """A result as shards have it, with a digest of the paragraph that it belongs to."""
    content = {
        "context": _digest(paragraph),
        "questions": result.questions,
        "counts": result.counts,
        "failures": result.failures,
    }
    return json.dumps(content, ensure_ascii=False)


def write_augmented(data: Path, results: Iterator[tuple[int, str]], output: Path, left_out: Path) -> AugmentationReport:
    """Writes the sound part of a SQuAD file, with the questions of the results behind those of their paragraphs.

    Args:
        data: the input.
        results: of all its paragraphs, numbered from 0, in their order.
        output: the SQuAD 2.0 file.
        left_out: gets a JSON object a line for what is malformed or failed: id, place, reason.

    Raises:
        ValueError: the results are not those of the input's paragraphs.
    """
    totals, ends = Counter(paragraphs=0, questions=0, answerable=0, left_out=0), Counter[str]()
    with output.open("w", encoding="utf-8") as file, left_out.open("w", encoding="utf-8") as lines:

        def leave_out(record: BadRecord) -> None:
            totals["left_out"] += 1
            lines.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")

        file.write('{"version": "v2.0", "data": [')
        separator = "\n"
        for article in stream_articles(data, leave_out):
            first = totals["paragraphs"]
            own = [_result(data, results, paragraph, first + n) for n, paragraph in enumerate(article.paragraphs)]
            for paragraph, result in zip(article.paragraphs, own, strict=True):
                answerable = sum(bool(question.answers) for question in paragraph.questions)
                totals.update(paragraphs=1, questions=len(paragraph.questions), answerable=answerable)
                ends.update(result["counts"])
                for id, reason in result["failures"]:
                    leave_out(BadRecord(id, f"article {article.number}", reason))
            if own:
                file.write(separator + json.dumps(_article(article, own), ensure_ascii=False))
                separator = ",\n"
        file.write("\n]}\n")
    return AugmentationReport(**totals, candidates=dict(ends))


def _result(data: Path, results: Iterator[tuple[int, str]], paragraph: Paragraph, number: int) -> dict[str, Any]:
    found, content = next(results, (-1, "{}"))
    result = json.loads(content)
    if found != number or result["context"] != _digest(paragraph):
        raise ValueError(f"{data} has changed since its augmentation was begun: paragraph {number} is another one")
    return result


def _article(article: Article, results: list[dict[str, Any]]) -> dict[str, Any]:
    paragraphs = []
    for paragraph, result in zip(article.paragraphs, results, strict=True):
        questions = [question_json(question) for question in paragraph.questions]
        paragraphs.append({"context": paragraph.context, "qas": questions + result["questions"]})
    return {"title": article.title, "paragraphs": paragraphs}


def _digest(paragraph: Paragraph) -> str:
    return hashlib.sha256(paragraph.context.encode()).hexdigest()[:16]
