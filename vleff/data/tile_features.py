"""Batches of Tile VQA as models of transformers take them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vleff.data.tile_grid import CELLS, CLASSES, COLOURS, NUMBERS, SIDE, Grid
from vleff.data.tile_vqa import ANSWERS, TileQuestion

WORDS = ("what", "colour", "is", "the", "item", "items", "how", "many", "are", "there", "a", "in", "row", "column", "?")


class TileCollator:
    """Makes a batch of questions: token ids padded to the longest, pixels, answers as one-hot float32 labels.

    Args:
        tokenizer: any with BERT's inputs.
        with_cells: also `cell_classes` and `cell_colours`, int64 [batch, 16], -100 where nothing is to be learned:
            the class of an empty cell is 10, it has no colour; and `cell_matters`, float32 [batch, 16], 1 where a
            cell must be seen to answer. A model may learn from the last before it has trimmers, never with them.
    """

    def __init__(self, tokenizer: Any, with_cells: bool = False) -> None:
        self.tokenizer, self.with_cells = tokenizer, with_cells

    def __call__(self, questions: Sequence[TileQuestion]) -> dict[str, Tensor]:
        batch = dict(self.tokenizer([question.question for question in questions], padding=True, return_tensors="pt"))
        batch["pixel_values"] = pixels([question.grid for question in questions])
        batch["pixel_mask"] = torch.ones_like(batch["pixel_values"][:, 0], dtype=torch.int64)
        batch["labels"] = torch.zeros(len(questions), len(ANSWERS))
        answers = torch.tensor([ANSWERS.index(question.answer) for question in questions])
        batch["labels"].scatter_(1, answers[:, None], 1.0)
        if self.with_cells:
            classes = torch.from_numpy(np.stack([question.grid.classes for question in questions]))
            colours = torch.from_numpy(np.stack([question.grid.colours for question in questions]))
            batch["cell_classes"] = torch.where(classes < 0, len(CLASSES), classes)
            batch["cell_colours"] = torch.where(colours < 0, -100, colours)
            batch["cell_matters"] = torch.from_numpy(np.stack([question.matters for question in questions])).float()
        return batch


def pixels(grids: Sequence[Grid]) -> Tensor:
    """The pictures of grids, float32 [batch, 3, 112, 112] from -1 to 1, as `ViltImageProcessor` scales them."""
    pictures = torch.from_numpy(np.stack([grid.picture for grid in grids]))
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def cells_of(places: Tensor, patches_a_side: int) -> Tensor:
    """The number of the cell, 0 to 15, that each patch of a grid's picture lies in.

    Args:
        places: int64 [..., 2], row and column of patches.
        patches_a_side: of the whole picture.
    """
    inside = places // (patches_a_side // SIDE)
    return inside[..., 0] * SIDE + inside[..., 1]


def cell_means(states: Tensor, cells: Tensor) -> Tensor:
    """Mean state of each cell's patches, [batch, 16, width].

    Args:
        states: [batch, patches, width].
        cells: int64 [batch, patches], of `cells_of`; each of the 16 has a patch at least.
    """
    member = torch.nn.functional.one_hot(cells, CELLS).to(states.dtype)
    return torch.einsum("bpc,bpw->bcw", member, states) / member.sum(1)[..., None]


def tile_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that knows those of the questions only."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS, *CLASSES, *COLOURS, *NUMBERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
