"""What the studies on Tile VQA share: questions, and where results and trained models go."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from study_units import Units, device
from torch.utils.data import SequentialSampler

from vleff.data.fashion_mnist import read_fashion_mnist
from vleff.data.tile_features import TileCollator
from vleff.data.tile_vqa import TileQuestion, TileVqa

ANSWERED = 64  # questions at a time
NEVER = 10**7  # more questions than any training takes: each is new
DEVICE = device()
WORKERS = 2 if DEVICE.type == "cuda" else 0  # processes that draw questions: on a GPU they take longer than a step


@dataclass(frozen=True)
class TileStudy:
    """The data, and where results go.

    Attributes:
        plan: of the study; accuracies are of `plan.tested` questions.
    """

    tokenizer: Any
    data: Path
    work: Path
    results: Path
    plan: Any

    @property
    def units(self) -> Units:
        return Units(self.results, self.work)

    def trained_on(self, seed: int) -> TileVqa:
        return TileVqa(read_fashion_mnist(self.data), NEVER, seed)

    @cached_property
    def tested_on(self) -> list[TileQuestion]:
        return list(TileVqa(read_fashion_mnist(self.data, "test"), self.plan.tested, 1))

    @cached_property
    def collate(self) -> TileCollator:
        return TileCollator(self.tokenizer)


class InOrder:
    """For a Trainer that takes questions in their order: each is new anyway."""

    train_dataset: Any

    def _get_train_sampler(self, *arguments: Any) -> Any:
        return SequentialSampler(self.train_dataset)
