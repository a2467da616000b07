"""Rows that say themselves which they are, so that any row of a store can be checked."""

from pathlib import Path

import numpy as np

from vleff.dide.store import RepresentationStore
from vleff.dide.version import RepresentationVersion

VERSION = RepresentationVersion("image", "a" * 64, {"size": 384, "mean": (0.5, 0.5)})
WIDTH = 24


def row_ids(first: int, count: int, prefix: str = "row") -> list[str]:
    """Ids of different length, some beyond ASCII."""
    return [f"{prefix} {number} {'é' * (number % 5)}" for number in range(first, first + count)]


def row_vectors(first: int, count: int, width: int = WIDTH) -> np.ndarray:
    """Exact in float16."""
    numbers = np.arange(first, first + count)[:, None]
    return (((numbers * 31 + np.arange(width) * 7) % 2048) - 1024).astype(np.float32)


def new_store(folder: Path, dtype: str = "float16", version: RepresentationVersion = VERSION) -> RepresentationStore:
    return RepresentationStore.create(folder, version, WIDTH, dtype)


def fill(folder: Path, count: int, shard: str = "main", first: int = 0) -> RepresentationStore:
    """Appends rows and opens the store anew."""
    with RepresentationStore(folder).writer(shard) as writer:
        writer.append(row_ids(first, count), row_vectors(first, count))
    return RepresentationStore(folder)


def assert_rows(store: RepresentationStore, numbers: list[int]) -> None:
    """The store holds exactly the rows with these numbers, in this order."""
    assert len(store) == len(numbers)
    assert store.ids() == [row_ids(number, 1)[0] for number in numbers]
    if numbers:
        expected = np.concatenate([row_vectors(number, 1) for number in numbers])
        assert np.array_equal(store[np.arange(len(numbers))], expected)
