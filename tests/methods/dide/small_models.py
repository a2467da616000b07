"""Small fusion encoders and dual encoders with random weights, and inputs for them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
    ViTConfig,
    ViTModel,
)
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from vleff.dide import DualEncoder, Preprocessor

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "colour", "is", "it", "a", "picture", *COLOURS]

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = {**SIZES, "vocab_size": 99, "max_position_embeddings": 40}
IMAGE = {**SIZES, "image_size": 32, "patch_size": 8}
VILT = {**TEXT, **IMAGE, "modality_type_vocab_size": 3}
ANSWERS = 7
TEACHERS: dict[str, tuple[type, dict[str, Any]]] = {
    "vqa": (ViltForQuestionAnswering, {"num_labels": ANSWERS}),
    "snli-ve": (ViltForQuestionAnswering, {"num_labels": 3}),
    "nlvr2": (ViltForImagesAndTextClassification, {"num_labels": 2, "num_images": 2}),
    "retrieval": (ViltForImageAndTextRetrieval, {}),
}
# towers of other families, by the name of the pair
PAIRS: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "clip": (
        lambda: CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=98)),
        lambda: CLIPVisionModel(CLIPVisionConfig(**IMAGE)),
        {},
    ),
    "siglip": (
        lambda: SiglipTextModel(SiglipTextConfig(**TEXT)),
        lambda: SiglipVisionModel(SiglipVisionConfig(**IMAGE)),
        {},
    ),
    "bert and vit": (
        lambda: BertModel(BertConfig(**TEXT)),
        lambda: ViTModel(ViTConfig(**{**IMAGE, "hidden_size": 48})),
        {"text_pooling": "mean", "image_pooling": "first"},
    ),
}


def shaken(model: nn.Module) -> Any:
    """Moves all weights, those that begin as zeros and ones included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def teacher(task: str, **config: Any) -> Any:
    """A fusion encoder with the head of a task."""
    model_class, arguments = TEACHERS[task]
    return shaken(model_class(ViltConfig(**VILT | arguments | config)))


def student(task: str, **config: Any) -> DualEncoder:
    """A dual encoder with random weights."""
    labels = {} if task in ("retrieval", "nlvr2", "snli-ve") else {"num_labels": ANSWERS}
    return shaken(DualEncoder.from_fusion(teacher(task, **config), task, **labels))


def texts(lengths: tuple[int, ...] = (3, 11, 6, 1), padded: int = 12) -> dict[str, Tensor]:
    mask = (torch.arange(padded) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(5, 98, mask.shape) * mask, "attention_mask": mask}


def images(sizes: tuple[tuple[int, int], ...] = ((40, 24), (16, 32), (32, 32), (8, 32))) -> dict[str, Tensor]:
    """Pixels of several sizes and their mask, padded on the right and at the bottom."""
    height, width = (max(size[dim] for size in sizes) for dim in (0, 1))
    mask = torch.zeros(len(sizes), height, width, dtype=torch.int64)
    for row, (own_height, own_width) in zip(mask, sizes, strict=True):
        row[:own_height, :own_width] = 1
    return {"pixel_values": torch.randn(len(sizes), 3, height, width) * mask[:, None], "pixel_mask": mask}


def inputs(task: str) -> dict[str, Tensor]:
    """A padded batch of four for a model of a task, images of several sizes."""
    pixels = images()
    if task == "nlvr2":
        pixels = {name: torch.stack([value, value.roll(1, 0)], 1) for name, value in pixels.items()}
    return texts() | pixels


def labels(task: str) -> Tensor:
    return {
        "vqa": torch.rand(4, ANSWERS),
        "snli-ve": torch.tensor([2, 0, 1, 1]),
        "nlvr2": torch.tensor([0, 1, 1, 0]),
        "retrieval": torch.tensor([0, 1, 2, 3]),
    }[task]


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]", model_max_length=12, **special)


def preprocessor() -> Preprocessor:
    return Preprocessor(tokenizer(), ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8), 12)


def picture(colour: str, number: int = 0) -> Image.Image:
    """One of many nearly uniform pictures of a colour."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.randint(0, 15, (32, 32, 3), generator=generator)
    pixels = (torch.tensor(COLOURS[colour]) + noise).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def write_pictures(folder: Path, count: int = 12) -> list[str]:
    """PNG files, some in a subfolder; their names, as the ids in a store will be."""
    (folder / "more").mkdir(parents=True)
    names = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        names.append(f"{'more/' if number % 3 == 0 else ''}{number:02d} {colour}.png")
        picture(colour, number).save(folder / names[-1])
    return sorted(names)


def saved(model: Any, folder: Path) -> Path:
    """A model with a preprocessor in a folder."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    preprocessor().save_pretrained(folder)
    return folder
