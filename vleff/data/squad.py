"""Reading-comprehension data in the JSON format of SQuAD 1.1 and 2.0, plain or compressed by gzip."""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A span of the paragraph: `text` begins at character `start`."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question about one paragraph.

    Attributes:
        id: unique in its file.
        text: the question.
        answers: the accepted answers, empty if the question is unanswerable.
        plausible_answers: for an unanswerable question of SQuAD 2.0, the spans that look like an answer.
        is_impossible: whether the paragraph does not answer it (SQuAD 2.0).
    """

    id: str
    text: str
    answers: tuple[Answer, ...]
    plausible_answers: tuple[Answer, ...] = ()
    is_impossible: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of the article `title` with its questions."""

    title: str
    context: str
    questions: tuple[Question, ...]


def read_squad(path: str | Path) -> list[Paragraph]:
    """All paragraphs of a file in SQuAD format, in its order.

    Args:
        path: a `.json` file, or a `.json.gz` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or not of the format; the message says where.
    """
    path = Path(path)
    try:
        content = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON in SQuAD format (.json or .json.gz), got {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f'{path}: expected an object with a list "data", as in SQuAD files')
    paragraphs = []
    for a, article in enumerate(content["data"]):
        try:
            title = article.get("title", "")
            paragraphs += [_paragraph(title, paragraph) for paragraph in article["paragraphs"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: article {a} is not in SQuAD format: {_reason(error)}") from error
    return paragraphs


def load_squad(name: str | Path, split: str = "train") -> list[Paragraph]:
    """The paragraphs of a file in SQuAD format, or of a data set of the hub with its columns.

    Args:
        name: a file, or what `datasets.load_dataset` takes.
        split: of the data set.

    Raises:
        FileNotFoundError: `name` looks like a file, and there is none.
        ImportError: it looks like a data set, and the package `datasets` is not installed.
        ValueError: the file or the data set is not of the format.
    """
    if Path(name).exists() or str(name).endswith((".json", ".json.gz")):
        return read_squad(name)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{name} is no file; to load it as a data set of the hub: pip install datasets") from error
    return paragraphs_of(load_dataset(str(name), split=split), str(name))


def paragraphs_of(rows: Iterable[Mapping[str, Any]], name: str) -> list[Paragraph]:
    """Paragraphs from rows with the columns id, context, question and answers (text, answer_start), and title if any.

    Raises:
        ValueError: a column is missing or of another kind; the message has `name`.
    """
    grouped: dict[tuple[str, str], list[Question]] = {}
    for number, row in enumerate(rows):
        try:
            spans = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            answers = tuple(Answer(text, int(start)) for text, start in spans)
            question = Question(str(row["id"]), row["question"], answers, is_impossible=not answers)
            grouped.setdefault((row.get("title", ""), row["context"]), []).append(question)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: row {number} is not in SQuAD format: {_reason(error)}") from error
    return [Paragraph(title, context, tuple(questions)) for (title, context), questions in grouped.items()]


def _paragraph(title: str, content: dict[str, Any]) -> Paragraph:
    if not isinstance(content["context"], str):
        raise TypeError(f'"context" is {content["context"]!r}, expected text')
    return Paragraph(title, content["context"], tuple(parse_question(question) for question in content["qas"]))


def parse_question(content: dict[str, Any]) -> Question:
    """A question of a SQuAD file.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or of another type.
    """
    return Question(
        id=str(content["id"]),
        text=content["question"],
        answers=_answers(content["answers"]),
        plausible_answers=_answers(content.get("plausible_answers", [])),
        is_impossible=bool(content.get("is_impossible", False)),
    )


def question_json(question: Question) -> dict[str, Any]:
    """A question as SQuAD 2.0 files have it."""
    content: dict[str, Any] = {
        "id": question.id,
        "question": question.text,
        "answers": [_answer_json(answer) for answer in question.answers],
        "is_impossible": question.is_impossible,
    }
    if question.is_impossible:
        content["plausible_answers"] = [_answer_json(answer) for answer in question.plausible_answers]
    return content


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "answer_start": answer.start}


def _answers(content: list[dict[str, Any]]) -> tuple[Answer, ...]:
    return tuple(Answer(answer["text"], int(answer["answer_start"])) for answer in content)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
