"""Examples of a task, texts with images and labels, from JSON Lines or a data set, and batches of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vleff.dide.encoding import load_image
from vleff.dide.preprocessing import Preprocessor

TRUTH = {True: 1, False: 0, "true": 1, "false": 0, "True": 1, "False": 0}


@dataclass(frozen=True)
class Example:
    """A text with its image, or its two images.

    Attributes:
        text: a question, a statement, a description.
        images: one, or two: paths, or images as an image processor takes them.
        label: for "vqa" an answer, a list of answers or a share for each of several answers; for the other tasks
            with classes a class's number or name, for "nlvr2" also true or false; for "retrieval" what the pair is
            about: pairs with the same label fit each other; None then stands for nothing else than this pair.
    """

    text: str
    images: tuple[Any, ...]
    label: Any = None


def read_examples(path: str | Path, split: str = "train") -> list[Example]:
    """Reads JSON Lines, an object {"text": ..., "image": path or [path, path], "label": ...} a line.

    Args:
        path: a file, from whose folder the images' paths start; or what `datasets.load_dataset` takes, a data set
            with such columns.
        split: of a data set.

    Raises:
        FileNotFoundError, ValueError: the file is missing or of another format; the message names the line.
        ImportError: `path` is no file, and the package `datasets` is not installed.
    """
    path = Path(path)
    if path.exists() or path.suffix in (".jsonl", ".json"):
        with path.open(encoding="utf-8") as file:
            return examples_of(_lines(file, path), str(path), path.parent)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{path} is no file; to load it as a data set of the hub: pip install datasets") from error
    return examples_of(load_dataset(str(path), split=split), str(path))


def examples_of(rows: Iterable[Mapping[str, Any]], name: str, folder: Path | None = None) -> list[Example]:
    """Examples from rows with the columns text, image and, if there are labels, label.

    Args:
        name: for messages.
        folder: from which relative paths start.

    Raises:
        ValueError: a row is of another format, or there is none.
    """
    examples = []
    for number, row in enumerate(rows):
        try:
            text, images = row["text"], row["image"]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{name}: row {number}: expected an object with "text" and "image", got {row!r}'
            ) from error
        images = images if isinstance(images, list | tuple) else [images]
        if folder is not None:
            images = [folder / image if isinstance(image, str) else image for image in images]
        if not isinstance(text, str) or len(images) not in (1, 2):
            raise ValueError(f"{name}: row {number}: expected a text and one or two images, got {row!r}")
        examples.append(Example(text, tuple(images), row.get("label")))
    if not examples:
        raise ValueError(f"{name}: expected at least one example, got none")
    return examples


class ExampleCollator:
    """Makes a batch of examples: the arguments of a DualEncoder, labels included.

    Args:
        preprocessor: of texts and images.
        task: of the model.
        classes: the number of each class by its name, as in a config's label2id.
    """

    def __init__(self, preprocessor: Preprocessor, task: str, classes: Mapping[str, int]) -> None:
        self.preprocessor, self.task, self.classes = preprocessor, task, classes
        self._abouts: dict[str, int] = {}

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """
        Raises:
            ValueError: an example has another number of images than the task, or a label that is no class.
        """
        wanted = 2 if self.task == "nlvr2" else 1
        for example in examples:
            if len(example.images) != wanted:
                raise ValueError(
                    f"{example.text!r}: expected {wanted} images for {self.task}, got {len(example.images)}"
                )
        batch = self.preprocessor.texts([example.text for example in examples])
        images = [load_image(str(image), image) for example in examples for image in example.images]
        for name, value in self.preprocessor.images(images).items():
            batch[name] = value.unflatten(0, (-1, wanted)) if wanted > 1 else value
        if self.task == "retrieval" or all(example.label is not None for example in examples):
            batch["labels"] = self.labels(examples)
        return batch

    def labels(self, examples: Sequence[Example]) -> Tensor:
        """As DualEncoder.forward takes them."""
        if self.task == "retrieval":
            abouts = [f"pair {number}" if e.label is None else str(e.label) for number, e in enumerate(examples)]
            return torch.tensor([self._abouts.setdefault(about, len(self._abouts)) for about in abouts])
        if self.task != "vqa":
            return torch.tensor([self._class(example.label) for example in examples])
        labels = torch.zeros(len(examples), len(self.classes))
        for row, example in zip(labels, examples, strict=True):
            answers = example.label if isinstance(example.label, list | dict) else [example.label]
            shares = answers if isinstance(answers, dict) else dict.fromkeys(answers, 1.0)
            for answer, share in shares.items():
                if answer in self.classes:  # the classes are the frequent answers
                    row[self.classes[answer]] = share
        return labels

    def _class(self, label: Any) -> int:
        if self.task == "nlvr2" and label in TRUTH:
            return TRUTH[label]
        if isinstance(label, int) and 0 <= label < len(self.classes):
            return label
        if label in self.classes:
            return self.classes[label]
        raise ValueError(f"label: expected one of {', '.join(self.classes)} or its number, got {label!r}")


def _lines(file: Iterable[str], path: Path) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(file):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number + 1}: expected JSON, got {error}") from error
