"""Batches of real input: paragraphs and questions about Wikipedia, of the package or of the user."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vleff.data.squad import read_squad

DATA = resources.files("vleff.bench") / "data"


@dataclass(frozen=True)
class Batch:
    """One batch as a user hands it to a model.

    Attributes:
        inputs: the model's keyword arguments, padded.
        valid: for each tensor of hidden states that the model returns, bool [batch, length]: which are no padding.
        samples: numbers of the samples, equal in every batch that holds the same sample.
        in_order: how many positions come in a fixed order; None if all do. ViLT shuffles its image patches.
    """

    inputs: dict[str, Tensor]
    valid: tuple[Tensor, ...]
    samples: list[int]
    in_order: int | None = None

    @property
    def lengths(self) -> list[int]:
        """The true number of tokens of each sample."""
        return torch.cat(self.valid, dim=1).sum(1).tolist()

    @property
    def padded_length(self) -> int:
        """The number of tokens, padding included, that each sample takes."""
        return sum(valid.shape[1] for valid in self.valid)

    def alone(self, row: int) -> dict[str, Tensor]:
        """The inputs of one sample without padding, as a batch of one."""
        inputs = {name: value[row : row + 1] for name, value in self.inputs.items()}
        if "attention_mask" in inputs:
            length = int(inputs["attention_mask"].sum())
            inputs |= {name: inputs[name][:, :length] for name in ("input_ids", "attention_mask")}
        if "pixel_mask" in inputs:
            height, width = (int(inputs["pixel_mask"][0].amax(dim).sum()) for dim in (1, 0))
            inputs |= {name: inputs[name][..., :height, :width] for name in ("pixel_values", "pixel_mask")}
        return inputs


@dataclass(frozen=True)
class Samples:
    """Samples in the order in which batches take them.

    Attributes:
        description: where they come from, for the report.
        size: how many different ones there are.
        collate: makes a batch of the samples with these numbers.
    """

    description: str
    size: int
    collate: Callable[[list[int]], Batch]

    def batches(self, batch: int, at_least: int = 8) -> list[Batch]:
        """Batches of `batch` samples that hold at least `at_least` samples together.

        Every batch size starts from the same samples; when they run out, they are used again.
        """
        count = -(-at_least // batch)
        numbers = [number % self.size for number in range(count * batch)]
        return [self.collate(numbers[i * batch : (i + 1) * batch]) for i in range(count)]


def text_samples(token_ids: Sequence[Sequence[int]], description: str, padding: int) -> Samples:
    """Texts as token ids, in the given order; batches are padded to their longest."""

    def collate(numbers: list[int]) -> Batch:
        inputs = pad_texts([token_ids[number] for number in numbers], padding)
        return Batch(inputs, (inputs["attention_mask"].bool(),), numbers)

    return Samples(description, len(token_ids), collate)


def pad_texts(token_ids: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, [batch, longest] each."""
    rows = [torch.tensor(ids) for ids in token_ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True, padding_value=padding),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }


def paragraphs(data: Path | None) -> list[str]:
    """The paragraphs of a SQuAD file; of the package's own excerpt if `data` is None.

    Raises:
        ValueError: the file is not in SQuAD format, or holds no paragraph.
    """
    if data is None:
        with resources.as_file(DATA / "paragraphs.json") as excerpt:
            return [paragraph.context for paragraph in read_squad(excerpt)]
    contexts = [paragraph.context for paragraph in read_squad(data)]
    if not contexts:
        raise ValueError(f"{data}: expected at least one paragraph, got none")
    return contexts


def questions(data: Path | None) -> list[str]:
    """The questions of a SQuAD file; of the package's own excerpt if `data` is None.

    Raises:
        ValueError: the file is not in SQuAD format, or holds no question.
    """
    if data is None:
        return _question_data()["questions"]
    texts = [question.text for paragraph in read_squad(data) for question in paragraph.questions]
    if not texts:
        raise ValueError(f"{data}: expected at least one question, got none")
    return texts


def bert_token_ids() -> list[list[int]]:
    """The package's paragraphs in the vocabulary of bert-base-uncased."""
    return json.loads((DATA / "token_ids.json").read_text(encoding="utf-8"))


def bert_question_ids() -> list[list[int]]:
    """The package's questions in the vocabulary of bert-base-uncased."""
    return _question_data()["token_ids"]


def _question_data() -> dict[str, Any]:
    return json.loads((DATA / "questions.json").read_text(encoding="utf-8"))


def tokenize(tokenizer: Any, texts: list[str], maximum_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `maximum_length`."""
    return tokenizer(texts, truncation=True, max_length=maximum_length, padding=False)["input_ids"]
