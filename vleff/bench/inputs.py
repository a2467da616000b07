"""Batches of real input: Wikipedia paragraphs and photos, of the package or of the user."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vleff.data.squad import read_squad

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_DATA = resources.files("vleff.bench") / "data"


@dataclass(frozen=True)
class Batch:
    """One batch as a user hands it to a model.

    Attributes:
        inputs: the model's keyword arguments, padded.
        lengths: the true number of tokens of each sample.
        samples: numbers of the samples, equal in every batch that holds the same sample.
    """

    inputs: dict[str, Tensor]
    lengths: list[int]
    samples: list[int]

    def alone(self, row: int) -> dict[str, Tensor]:
        """The inputs of one sample without padding, as a batch of one."""
        inputs = {name: value[row : row + 1] for name, value in self.inputs.items()}
        if "input_ids" in inputs:
            inputs = {name: value[:, : self.lengths[row]] for name, value in inputs.items()}
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
    """Paragraphs as token ids, in the given order; batches are padded to their longest."""

    def collate(numbers: list[int]) -> Batch:
        rows = [torch.tensor(token_ids[number]) for number in numbers]
        pad = torch.nn.utils.rnn.pad_sequence
        inputs = {
            "input_ids": pad(rows, batch_first=True, padding_value=padding),
            "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        }
        return Batch(inputs, [len(row) for row in rows], numbers)

    return Samples(description, len(token_ids), collate)


def paragraphs(data: Path | None) -> list[str]:
    """The paragraphs of a SQuAD file; of the package's own excerpt if `data` is None.

    Raises:
        ValueError: the file is not in SQuAD format, or holds no paragraph.
    """
    if data is None:
        with resources.as_file(_DATA / "paragraphs.json") as excerpt:
            return [paragraph.context for paragraph in read_squad(excerpt)]
    contexts = [paragraph.context for paragraph in read_squad(data)]
    if not contexts:
        raise ValueError(f"{data}: expected at least one paragraph, got none")
    return contexts


def bert_token_ids() -> list[list[int]]:
    """The package's paragraphs in the vocabulary of bert-base-uncased."""
    return json.loads((_DATA / "token_ids.json").read_text(encoding="utf-8"))


def tokenize(tokenizer: Any, texts: list[str], maximum_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `maximum_length`."""
    return tokenizer(texts, truncation=True, max_length=maximum_length, padding=False)["input_ids"]


def photo_samples(folder: Path | None, image_size: int, tokens: int, seed: int) -> Samples:
    """Random crops of photos, chosen by `seed`, as pixel values in [-1, 1].

    Args:
        folder: where the photos are; the package's own if None.
        image_size: edge of the square crops in pixels.
        tokens: how many tokens the model makes of one image.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: the folder holds no image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("photos need Pillow: pip install pillow, or vleff[bench]") from error
    with resources.as_file(_DATA / "photos") as shipped:
        files = sorted((folder or shipped).iterdir())
        files = [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES]
        if not files:
            raise ValueError(f"{folder}: expected images ({', '.join(sorted(PHOTO_SUFFIXES))}), found none")
        photos = [Image.open(file).convert("RGB") for file in files]

    def pixels(number: int) -> Tensor:
        generator = random.Random(f"{seed} {number}")
        photo = photos[number % len(photos)]
        edge = round(min(photo.size) * generator.uniform(0.7, 1.0))
        left, top = (generator.randint(0, extent - edge) for extent in photo.size)
        crop = photo.resize((image_size, image_size), box=(left, top, left + edge, top + edge))
        values = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8)
        return values.view(image_size, image_size, 3).permute(2, 0, 1).float() / 127.5 - 1

    def collate(numbers: list[int]) -> Batch:
        values = torch.stack([pixels(number) for number in numbers])
        return Batch({"pixel_values": values}, [tokens] * len(numbers), numbers)

    source = f"crops of {len(photos)} photos ({folder or 'shipped with vleff'})"
    return Samples(source, max(64, len(photos)), collate)
