"""Search finds the best rows exactly, in an order that nothing but the scores and the rows decides."""

from pathlib import Path

import numpy as np
import pytest
import torch
from methods.dide.store_cases import VERSION

from vleff.dide import FaissIndex, RepresentationStore, exact_search, search

WIDTH = 40


def filled(folder: Path, vectors: np.ndarray, dtype: str = "float32", parts: int = 1) -> RepresentationStore:
    """A store of these vectors in several shards."""
    RepresentationStore.create(folder, VERSION, vectors.shape[1], dtype)
    first = 0
    for number, part in enumerate(np.array_split(vectors, parts)):
        with RepresentationStore(folder).writer(f"part-{number}") as writer:
            writer.append([str(first + row) for row in range(len(part))], part)
        first += len(part)
    return RepresentationStore(folder)


def random_rows(count: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rows", [0, 1, 7, 700])
def test_all_rows_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, rows: int) -> None:
    monkeypatch.setattr(exact_search, "BLOCK", 64)
    store = filled(tmp_path, random_rows(rows), dtype, parts=3)
    queries = torch.randn(5, WIDTH)
    expected = queries.double().numpy() @ store[np.arange(rows)].astype(np.float64).T
    for query, found in zip(expected, search(store, queries, 10), strict=True):
        order = np.argsort(-query, kind="stable")[:10]
        assert found.rows.tolist() == order.tolist()
        assert found.ids == [str(row) for row in order]
        np.testing.assert_allclose(found.scores, query[order], rtol=1e-4, atol=1e-5)


def test_of_equal_scores_the_lower_row_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "BLOCK", 16)
    vectors = np.repeat(random_rows(4), 25, 0)  # 25 times the same, over several blocks
    vectors[60] = 0.0
    store = filled(tmp_path, vectors, parts=2)
    for query in (torch.from_numpy(vectors[30:31]), -torch.from_numpy(vectors[30:31]), torch.zeros(1, WIDTH)):
        (found,) = search(store, query, 100)
        ranked = list(zip(-found.scores, found.rows, strict=True))
        assert ranked == sorted(ranked) and sorted(found.rows) == list(range(100))


def test_bits_depend_on_neither_other_queries_nor_other_rows_nor_threads(tmp_path: Path, with_threads) -> None:
    vectors, queries = random_rows(500), torch.randn(40, WIDTH)
    store = filled(tmp_path / "all", vectors)
    together = search(store, queries, 20)
    for number in (0, 17, 39):
        (alone,) = search(store, queries[number : number + 1], 20)
        assert np.array_equal(alone.scores, together[number].scores)
        assert np.array_equal(alone.rows, together[number].rows)
    fewer = search(filled(tmp_path / "fewer", vectors[:100]), queries, 100)
    whole = search(store, queries, 500)
    for short, long in zip(fewer, whole, strict=True):
        scores = dict(zip(long.rows.tolist(), long.scores.tolist(), strict=True))
        assert all(scores[row] == score for row, score in zip(short.rows.tolist(), short.scores.tolist(), strict=True))
    for one, other in zip(with_threads(1, search, store, queries, 20), together, strict=True):
        assert np.array_equal(one.scores, other.scores) and np.array_equal(one.rows, other.rows)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_faiss_finds_the_same(tmp_path: Path, factory: str) -> None:
    pytest.importorskip("faiss", reason="FAISS is optional")
    store, queries = filled(tmp_path, random_rows(400), parts=2), torch.randn(6, WIDTH)
    index = FaissIndex(store, factory)
    if factory != "Flat":
        index.index.nprobe = 4  # all of its cells
    for ours, theirs in zip(search(store, queries, 5), index.search(queries, 5), strict=True):
        assert ours.ids == theirs.ids
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4)


def test_bad_input(tmp_path: Path) -> None:
    store = filled(tmp_path, random_rows(3))
    with pytest.raises(ValueError, match=r"'queries': expected \[queries, width\] = \[.., 40\], got \[2, 3\]"):
        search(store, torch.randn(2, 3), 1)
    with pytest.raises(ValueError, match="'k': expected at least 1, got 0"):
        search(store, torch.randn(2, WIDTH), 0)
    assert [len(found.rows) for found in search(store, torch.randn(2, WIDTH), 10)] == [3, 3]
