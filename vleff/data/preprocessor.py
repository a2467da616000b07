"""Preprocessor: texts and images as models of both take them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

Own = TypeVar("Own", bound="Preprocessor")

MAX_LENGTH = 40  # of ViLT's texts


class Preprocessor:
    """A tokenizer and an image processor of transformers.

    Args:
        tokenizer: for texts.
        image_processor: for images.
        max_length: of texts, in tokens; longer ones are cut off.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, max_length: int = MAX_LENGTH) -> None:
        self.tokenizer, self.image_processor, self.max_length = tokenizer, image_processor, max_length

    @classmethod
    def from_pretrained(cls: type[Own], name: str | Path, max_length: int | None = None) -> Own:
        """The tokenizer and the image processor in a folder, or of a model on the Hugging Face hub.

        Args:
            name: of the folder or the model.
            max_length: the tokenizer's own if None.

        Raises:
            OSError, ValueError: they are not there.
        """
        tokenizer = AutoTokenizer.from_pretrained(name)
        if max_length is None:
            max_length = tokenizer.model_max_length if tokenizer.model_max_length < 10**6 else MAX_LENGTH
        return cls(tokenizer, AutoImageProcessor.from_pretrained(name), max_length)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes both into a folder, with the length of texts."""
        self.tokenizer.model_max_length = self.max_length
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask, padded to the longest text."""
        return dict(
            self.tokenizer(
                list(texts),
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_token_type_ids=False,
                return_tensors="pt",
            )
        )

    def images(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """pixel_values and what else the image processor gives, for images as it takes them."""
        return dict(self.image_processor(list(images), return_tensors="pt"))
