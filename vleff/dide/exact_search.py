"""Exact search of a representation store by blocked matrix products, and FAISS where it is installed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vleff.dide.store import RepresentationStore
from vleff.ops.fused_linear import fused_linear

BLOCK = 16384  # rows multiplied at once


@dataclass(frozen=True)
class Found:
    """What was found for a query, best first; of equal scores the lower row comes first.

    Attributes:
        ids: of the rows.
        rows: int64 [k], their numbers in the store.
        scores: float32 [k], products of query and row; of unit vectors the cosines.
    """

    ids: list[str]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def search(store: RepresentationStore, queries: Tensor, k: int) -> list[Found]:
    """The rows whose product with each query is largest; all rows are looked at.

    Products are made in float32. A row's score has the same bits whatever other queries are asked and whatever other
    rows its store holds, at every number of threads.

    Args:
        store: its vectors are read block by block, never all at once.
        queries: [queries, width].
        k: how many rows; fewer if the store has fewer.

    Raises:
        ValueError: `queries` has another width, or `k` is not positive.
    """
    _check(store, queries, k)
    best = torch.empty(len(queries), 0, dtype=torch.int64)
    with torch.inference_mode():
        for first, scores in _scores(store, queries.detach().cpu().float()):
            ranks = _ranks(scores, first)
            ranks = ranks.topk(min(k, ranks.shape[1])).values
            best = torch.cat([best, ranks], 1)
            best = best.topk(min(k, best.shape[1])).values
    rows, found = (_LAST_ROW - (best & _LAST_ROW)).numpy(), _score_of(best).numpy()
    return [Found(store.ids(r), r, s) for r, s in zip(rows, found, strict=True)]


class FaissIndex:
    """A FAISS index of a store, for stores too large to look at every row.

    Args:
        store: its vectors are copied into the index.
        factory: which index, in the words of `faiss.index_factory`; "Flat" is exact.

    Raises:
        ImportError: FAISS is not installed.
    """

    def __init__(self, store: RepresentationStore, factory: str = "Flat") -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("an index needs FAISS: pip install faiss-cpu, or vleff[faiss]") from error
        self.store = store
        self.index: Any = faiss.index_factory(store.width, factory, faiss.METRIC_INNER_PRODUCT)
        if not self.index.is_trained:
            rows = np.random.default_rng(0).permutation(len(store))[: 64 * 1024]
            self.index.train(np.ascontiguousarray(store[np.sort(rows)], np.float32))
        for _, block in store.blocks(BLOCK):
            self.index.add(np.ascontiguousarray(block, np.float32))

    def search(self, queries: Tensor, k: int) -> list[Found]:
        """As `vleff.dide.search`, with the scores and the order of FAISS.

        Raises:
            ValueError: as there.
        """
        _check(self.store, queries, k)
        scores, rows = self.index.search(queries.detach().cpu().float().numpy(), min(k, max(len(self.store), 1)))
        found = []
        for own_scores, own_rows in zip(scores, rows, strict=True):
            there = own_rows >= 0
            found.append(Found(self.store.ids(own_rows[there]), own_rows[there], own_scores[there]))
        return found


# A rank is an int64 that sorts by score, then by row: the score's bits in the upper half, in the order of integers,
# and the row, counted backwards, in the lower one. All are different, so that their order is never left to chance.
_LAST_ROW = 2**32 - 1


def _ranks(scores: Tensor, first: int) -> Tensor:
    """float32 [queries, rows] of the rows from `first` on -> int64 [queries, rows]"""
    bits = scores.contiguous().view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) + (_LAST_ROW - first - torch.arange(scores.shape[1]))


def _score_of(ranks: Tensor) -> Tensor:
    ordered = ranks >> 32
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).int().view(torch.float32)


def _scores(store: RepresentationStore, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of a first row, and the products [queries, rows] with it and those that follow."""
    for first, block in store.blocks(BLOCK):
        rows = len(block)
        vectors = torch.from_numpy(block).float()
        if rows < BLOCK:  # products of one shape: a row's bits do not change when its block fills up
            vectors = torch.nn.functional.pad(vectors, (0, 0, 0, BLOCK - rows))
        yield first, fused_linear(queries, vectors)[:, :rows] + 0.0  # no -0.0, which would sort below 0.0


def _check(store: RepresentationStore, queries: Tensor, k: int) -> None:
    if queries.dim() != 2 or queries.shape[1] != store.width:
        expected = f"[queries, width] = [.., {store.width}]"
        raise ValueError(f"argument 'queries': expected {expected}, got {list(queries.shape)}")
    if k < 1:
        raise ValueError(f"argument 'k': expected at least 1, got {k}")
