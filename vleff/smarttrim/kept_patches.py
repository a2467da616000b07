"""Which patches of each image, and which tokens of each question, the layers of a trimmed ViLT work on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vleff.models.vilt_patches import recorded_places
from vleff.smarttrim.record import RunRecord


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """What the layers worked on of one question with its image.

    Attributes:
        patches: bool [layers, rows, columns], of the image.
        text: bool [layers, tokens], of the question without its padding.
        heads: bool [layers, heads].
    """

    patches: np.ndarray
    text: np.ndarray
    heads: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """int64 [layers], all tokens: the question's, the image's class token and the patches."""
        return self.text.sum(1) + 1 + self.patches.sum((1, 2))


@dataclass(eq=False)
class KeptWatcher:
    """Collects `samples`, in order, from the runs of a model; its method `add` is what `answer` takes as `watch`."""

    places: list[Tensor]
    patch_size: int
    samples: list[KeptTokens] = field(default_factory=list)

    def add(self, first: int, inputs: Mapping[str, Tensor], runs: Sequence[RunRecord]) -> None:
        """Takes the run that these inputs made last."""
        (run,) = runs
        places, text = self.places[-1].cpu(), inputs["attention_mask"].bool().cpu()
        length = text.shape[1]
        kept = torch.stack([record.kept() for record in run.layers], 1).cpu()  # [batch, layers, tokens]
        heads = torch.stack([_heads(run, number).cpu() for number in range(len(run.layers))], 1)
        for row, (rows, columns) in enumerate(_rows_and_columns(inputs["pixel_mask"], self.patch_size)):
            count = min(rows * columns, places.shape[1])  # drawn first; padding comes after them
            patches = torch.zeros(kept.shape[1], rows, columns, dtype=torch.bool)
            at = places[row, :count]
            patches[:, at[:, 0], at[:, 1]] = kept[row, :, length + 1 : length + 1 + count]
            words = kept[row, :, :length][:, text[row]]
            self.samples.append(KeptTokens(patches.numpy(), words.numpy(), heads[row].numpy()))


@contextmanager
def watching(model: nn.Module) -> Iterator[KeptWatcher]:
    """Within it, the watcher it gives can follow an attached ViLT.

    Raises:
        TypeError: the model is no ViLT.
    """
    with recorded_places(model) as places:
        config: Any = model.config
        yield KeptWatcher(places, config.patch_size)


def _heads(run: RunRecord, number: int) -> Tensor:
    """bool [batch, heads] of a layer's attention."""
    record = run.layers[number]
    (block,) = run.spec(record.stream).layers[record.layer].blocks
    kept = record.heads.get(block.name)
    return torch.ones(run.batch_size, block.heads, dtype=torch.bool) if kept is None else kept > 0.5


def _rows_and_columns(pixel_mask: Tensor, patch_size: int) -> list[tuple[int, int]]:
    """The number of rows and columns of patches of each image, as ViLT counts them."""
    size = [edge // patch_size for edge in pixel_mask.shape[1:]]
    mask = torch.nn.functional.interpolate(pixel_mask[:, None].float(), size=size)[:, 0]
    return [(int(one[:, 0].sum()), int(one[0].sum())) for one in mask]
