"""Vision-language models: the parts that `vleff bench` measures of them, and how they take questions and photos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vleff.bench.inputs import Batch, Samples, pad_texts
from vleff.bench.photos import EDGE_UNIT, Photos

# transformers' name of the family -> module and name of the class that is measured, imported when it is needed
PAIR_MODELS = {
    "blip": ("vleff.bench.blip_vqa", "BlipVqaEncoders"),
    "bridgetower": ("transformers", "BridgeTowerModel"),
    "clip": ("transformers", "CLIPModel"),
    "meter": ("vleff.models.meter", "MeterModel"),
    "vilt": ("transformers", "ViltModel"),
}
_OF_BERT_VOCABULARY = ("blip", "vilt")
_OF_ROBERTA_POSITIONS = ("bridgetower", "meter")


@dataclass(frozen=True)
class PairFormat:
    """How a vision-language model takes questions and photos.

    Attributes:
        padding: the token id that fills up questions.
        maximum_length: of a question, in tokens.
        image_size: edge of its square images in pixels.
        image_tokens: how many tokens it makes of one of them.
        one_sequence: whether question and image go through one sequence, the patches in random order, as in ViLT,
            and not through a stream each.
    """

    padding: int
    maximum_length: int
    image_size: int
    image_tokens: int
    one_sequence: bool = False


def pair_model_class(config: PreTrainedConfig) -> Any:
    """The class that is measured of a family in `PAIR_MODELS`."""
    module, name = PAIR_MODELS[config.model_type]
    return getattr(import_module(module), name)


def pair_format(config: PreTrainedConfig) -> PairFormat:
    """The format of a family in `PAIR_MODELS`."""
    text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    return PairFormat(
        padding=text.pad_token_id or 0,
        # RoBERTa's positions start after the padding id
        maximum_length=text.max_position_embeddings - (2 if config.model_type in _OF_ROBERTA_POSITIONS else 0),
        image_size=vision.image_size,
        image_tokens=(vision.image_size // vision.patch_size) ** 2 + 1,
        one_sequence=config.model_type == "vilt",
    )


def with_special_tokens(token_ids: list[list[int]], config: PreTrainedConfig) -> list[list[int]]:
    """Texts in BERT's vocabulary with the first and last token as the model knows them."""
    if config.model_type in _OF_BERT_VOCABULARY:
        return token_ids
    text = config.text_config
    return [[text.bos_token_id, *ids[1:-1], text.eos_token_id] for ids in token_ids]


def pair_samples(
    questions: Sequence[Sequence[int]], description: str, photos: Photos, format: PairFormat, mixed: bool = False
) -> Samples:
    """Questions as token ids, padded to the longest of a batch, each with a crop of a photo.

    Args:
        mixed: whether the images have many sizes, for a model of one sequence, which takes them padded to the
            largest of a batch with a pixel_mask; otherwise they are squares.
    """
    edge = format.image_size
    take: Callable[[int], Tensor] = photos.as_taken if mixed else lambda number: photos.square(number, edge)

    def collate(numbers: list[int]) -> Batch:
        inputs = pad_texts([questions[number] for number in numbers], format.padding)
        text = inputs["attention_mask"].bool()
        pixels = [take(number) for number in numbers]
        if not format.one_sequence:
            image = torch.ones(len(numbers), format.image_tokens, dtype=torch.bool)
            return Batch({**inputs, "pixel_values": torch.stack(pixels)}, (text, image), numbers)
        patches = torch.tensor([image[0].numel() // EDGE_UNIT**2 for image in pixels])
        image = torch.arange(1 + int(patches.max())) <= patches[:, None]  # the first is the class token
        valid = torch.cat([text, image], dim=1)
        return Batch({**inputs, **_pad_images(pixels)}, (valid,), numbers, in_order=text.shape[1] + 1)

    sizes = "in mixed sizes" if mixed else f"of {edge} x {edge} pixels"
    return Samples(f"{description}; crops of {photos.description} {sizes}", len(questions), collate)


def _pad_images(pixels: list[Tensor]) -> dict[str, Tensor]:
    """pixel_values [batch, 3, height, width] and pixel_mask [batch, height, width], padded to the largest."""
    height, width = (max(image.shape[dim] for image in pixels) for dim in (1, 2))
    values = torch.zeros(len(pixels), 3, height, width)
    mask = torch.zeros(len(pixels), height, width, dtype=torch.int64)
    for row, image in enumerate(pixels):
        values[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    return {"pixel_values": values, "pixel_mask": mask}
