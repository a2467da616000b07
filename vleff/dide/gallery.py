"""Gallery: a dual encoder over stored images: texts are encoded when they come, images never again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vleff
from vleff.dide.dual_encoder import DualEncoder
from vleff.dide.exact_search import Found, search
from vleff.dide.preprocessing import Preprocessor
from vleff.dide.store import RepresentationStore
from vleff.training.evaluating import evaluating

_PAIRS = 4096  # whose hidden layers are in memory at once


class Gallery:
    """Answers and ranks from representations that were computed once.

    Args:
        model: in eval mode, best accelerated.
        preprocessor: as when the images were encoded.
        store: of images, a folder or opened.

    Raises:
        ForeignRepresentationsError: the store was made by another model, or with other preprocessing.
    """

    def __init__(self, model: DualEncoder, preprocessor: Preprocessor, store: RepresentationStore | str | Path) -> None:
        folder = store.folder if isinstance(store, RepresentationStore) else store
        self.model, self.preprocessor = model.eval(), preprocessor
        self.store = RepresentationStore(folder, preprocessor.version(model, "image"))

    @classmethod
    def open(cls, model: str | Path, store: str | Path) -> "Gallery":
        """Loads a saved dual encoder with its preprocessor, accelerates it, and opens a store.

        Raises:
            ForeignRepresentationsError: the store was made by another model, or with other preprocessing.
        """
        loaded = vleff.accelerate(DualEncoder.from_pretrained(model).eval())
        return cls(loaded, Preprocessor.from_pretrained(model), store)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """[texts, width]"""
        with evaluating(self.model):
            inputs = self.preprocessor.texts(texts)
            return self.model.encode_text(**{name: value.to(self.model.device) for name, value in inputs.items()})

    def images(self, ids: Sequence[str]) -> Tensor:
        """The stored representations of images, [images, width] in the model's dtype.

        Raises:
            KeyError: there is no such image.
        """
        return self._tensor(self.store[self.store.rows(ids)])

    def search(self, texts: Sequence[str], k: int = 10) -> list[Found]:
        """The images that fit each text best, all images compared, best first. For the task "retrieval".

        Raises:
            ValueError: the model was made for another task.
        """
        if self.model.config.task != "retrieval":
            raise ValueError(
                f"search: expected a model for retrieval, got one for {self.model.config.task}, which answers about "
                "pairs of text and image: score or score_all"
            )
        return search(self.store, self.encode_texts(texts), k)

    def score(self, texts: Sequence[str], *ids: Sequence[str]) -> Tensor:
        """Compares each text with the image, or with the two images, at the same place.

        Args:
            texts: [pairs].
            ids: [pairs] of images; twice where the task has two images a text.

        Returns:
            logits [pairs, labels]; of retrieval scores [pairs].

        Raises:
            KeyError: there is no such image.
            ValueError: not as many images as texts, or another number of images a text than the task has.
        """
        for some in ids:
            if len(some) != len(texts):
                raise ValueError(f"argument 'ids': expected an image a text, {len(texts)}, got {len(some)}")
        with evaluating(self.model):
            return self.model.score(self.encode_texts(texts), *(self.images(some) for some in ids))

    def score_all(self, texts: Sequence[str], ids: Sequence[str] | None = None) -> Tensor:
        """Compares every text with every image.

        Args:
            texts: as many as you like; each is encoded once.
            ids: of images; all rows of the store, in its order, if None.

        Returns:
            logits [texts, images, labels]; of retrieval scores [texts, images].

        Raises:
            KeyError: there is no such image.
            ValueError: the task has two images a text.
        """
        text = self.encode_texts(texts)
        rows = max(1, _PAIRS // max(len(texts), 1))
        blocks = self._blocks(rows) if ids is None else iter(self.images(ids).split(rows))
        with evaluating(self.model):
            scores = [self.model.score(text[:, None], block) for block in blocks]
            return torch.cat(scores, 1) if scores else self.model.score(text[:, None], text[:0])

    def answer(self, texts: Sequence[str], *ids: Sequence[str]) -> list[str]:
        """The most probable class of each pair, by its name in the model's config; arguments as of `score`."""
        names: Any = self.model.config.id2label
        return [names[number] for number in self.score(texts, *ids).argmax(-1).tolist()]

    def _blocks(self, rows: int) -> Iterator[Tensor]:
        for _, block in self.store.blocks(rows):
            yield self._tensor(block)

    def _tensor(self, vectors: Any) -> Tensor:
        return torch.from_numpy(vectors).to(self.model.device, self.model.dtype)
