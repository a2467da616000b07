"""Reads questions about images: JSON rows that name image files, or a data set with such columns."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vleff.data.preprocessor import Preprocessor

_COLUMNS = ("image", "question", "answer")


@dataclass(frozen=True)
class ImageQuestion:
    """A question about an image.

    Attributes:
        image: a file, or a PIL image.
        answer: None if it is not known.
    """

    image: Any
    question: str
    answer: str | None = None

    def open(self) -> Image.Image:
        """The image in red, green and blue.

        Raises:
            ValueError: the file is no image that can be read.
        """
        if isinstance(self.image, Image.Image):
            return self.image.convert("RGB")
        try:
            with Image.open(self.image) as image:
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{self.image}: expected an image, got {error}") from error


def read_image_questions(path: str | Path) -> list[ImageQuestion]:
    """The questions of a file.

    Args:
        path: JSON, a list of objects such as `{"image": "cat.jpg", "question": "what is it?", "answer": "a cat"}`, or
            one such object a line (`.jsonl`). Relative image paths start at the file's folder; "answer" may be left
            out or null.

    Raises:
        FileNotFoundError: there is no such file, or an image that it names is missing; the message has the row.
        ValueError: the file is not JSON, or a row is not of the format; the message says which and why.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if _is_lines(path) else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, got {type(rows).__name__}")
    questions = questions_of(rows, str(path))
    for number, question in enumerate(questions):
        if not isinstance(question.image, str):
            raise ValueError(f"{path}: row {number}: expected the path of a file as 'image', got {question.image!r}")
        if not (path.parent / question.image).is_file():
            raise FileNotFoundError(f"{path}: row {number}: there is no image {path.parent / question.image}")
    return [ImageQuestion(path.parent / one.image, one.question, one.answer) for one in questions]


def load_image_questions(name: str | Path, split: str = "train") -> list[ImageQuestion]:
    """The questions of a file, or of a data set with the columns image, question and answer.

    Args:
        name: a file (`.json`, `.jsonl`), or what `datasets.load_dataset` takes.
        split: of the data set.

    Raises:
        FileNotFoundError: `name` looks like a file, and there is none, or an image is missing.
        ImportError: it looks like a data set, and the package `datasets` is not installed.
        ValueError: the file or the data set is not of the format.
    """
    if Path(name).is_file() or str(name).endswith((".json", ".jsonl")):
        return read_image_questions(name)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{name} is no file; to load it as a data set: pip install datasets") from error
    return questions_of(load_dataset(str(name), split=split), str(name))


def questions_of(rows: Iterable[Any], name: str) -> list[ImageQuestion]:
    """Questions from rows with the columns image, question and, if known, answer.

    Raises:
        ValueError: there is no row, or a column is missing or of another kind; the message has `name` and the row.
    """
    questions = [_question(row, f"{name}: row {number}") for number, row in enumerate(rows)]
    if not questions:
        raise ValueError(f"{name}: expected at least one question, got none")
    return questions


def frequent_answers(questions: Sequence[ImageQuestion], most: int = 3129) -> list[str]:
    """The answers, at most so many, the most frequent first; equally frequent ones by their letters."""
    counts = Counter(question.answer for question in questions if question.answer is not None)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:most]


class ImageQuestionCollator:
    """Makes batches for a model that chooses among known answers.

    Args:
        preprocessor: of the model.
        answers: the model's label number of each answer. A question with another answer, or none, gets a row of
            zeros as its label.
    """

    def __init__(self, preprocessor: Preprocessor, answers: Mapping[str, int]) -> None:
        self.preprocessor, self.answers = preprocessor, answers

    def __call__(self, questions: Sequence[ImageQuestion]) -> dict[str, Tensor]:
        """The model's inputs and `labels`, float32 [batch, answers], 1 at the answer."""
        texts = self.preprocessor.texts([question.question for question in questions])
        images = self.preprocessor.images([question.open() for question in questions])
        labels = torch.zeros(len(questions), len(self.answers))
        for row, question in zip(labels, questions, strict=True):
            if question.answer is not None and question.answer in self.answers:
                row[self.answers[question.answer]] = 1.0
        return {**texts, **images, "labels": labels}


def _question(row: Any, where: str) -> ImageQuestion:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with {', '.join(_COLUMNS)}, got {type(row).__name__}")
    for column in _COLUMNS[:2]:
        if row.get(column) is None:
            raise ValueError(f"{where}: {column!r} is missing; there are {', '.join(map(repr, row)) or 'none'}")
    question, answer = row["question"], row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: expected text as 'question', got {question!r}")
    if not isinstance(answer, str | None):
        raise ValueError(f"{where}: expected text as 'answer', got {answer!r}")
    return ImageQuestion(row["image"], question, answer)


def _is_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"
