"""Representation stores: what is appended is what is read, versions are kept apart, shards are merged."""

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from methods.dide.store_cases import VERSION, WIDTH, assert_rows, fill, new_store, row_ids, row_vectors

from vleff.dide import ForeignRepresentationsError, RepresentationStore


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_read_as_they_were_appended(tmp_path: Path, dtype: str) -> None:
    new_store(tmp_path, dtype)
    assert_rows(RepresentationStore(tmp_path), [])
    with RepresentationStore(tmp_path).writer() as writer:
        for first, count in ((0, 3), (3, 0), (3, 1), (4, 40)):
            writer.append(row_ids(first, count), row_vectors(first, count))
    store = RepresentationStore(tmp_path, VERSION)
    assert store.dtype == dtype and store.width == WIDTH
    assert_rows(store, list(range(44)))
    assert np.array_equal(store[7], row_vectors(7, 1)[0])
    assert store.ids([43, 0]) == [*row_ids(43, 1), *row_ids(0, 1)]
    assert store.rows(reversed(row_ids(10, 3))).tolist() == [12, 11, 10]
    assert [(first, len(block)) for first, block in store.blocks(20)] == [(0, 20), (20, 20), (40, 4)]


def test_values_are_rounded_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, WIDTH))
    new_store(tmp_path)
    with RepresentationStore(tmp_path).writer() as writer:
        writer.append(row_ids(0, 5), values)
    assert np.array_equal(RepresentationStore(tmp_path)[np.arange(5)], values.astype(np.float16))


def test_a_store_shows_what_was_committed_when_it_was_opened(tmp_path: Path) -> None:
    new_store(tmp_path)
    before = fill(tmp_path, 3)
    vectors = before[np.arange(3)]
    after = fill(tmp_path, 5, first=3)
    assert len(before) == 3 and np.array_equal(before[np.arange(3)], vectors)
    assert_rows(after, list(range(8)))
    next(iter(after.blocks(8)))[1][:] = 0  # a private copy: nothing on the disk changes
    assert_rows(RepresentationStore(tmp_path), list(range(8)))


def test_other_versions_are_refused(tmp_path: Path) -> None:
    new_store(tmp_path)
    for change, message in (
        ({"modality": "text"}, "holds image representations, expected those of texts"),
        ({"weights": "b" * 64}, "was encoded with weights aaaaaaaaaaaa, expected those of this model, bbbbbbbbbbbb"),
        ({"settings": {"size": 385}}, "was encoded with size = 384, expected 385, as this model has it"),
        ({"settings": {"mean": (0.4, 0.5)}}, r"was encoded with mean = \[0.5, 0.5\], expected \[0.4, 0.5\]"),
    ):
        other = replace(VERSION, **change)
        with pytest.raises(ForeignRepresentationsError, match=message):
            RepresentationStore(tmp_path, other)
        with pytest.raises(ForeignRepresentationsError, match="encode again into a new store"):
            new_store(tmp_path, version=other)
    RepresentationStore(tmp_path, replace(VERSION, settings={**VERSION.settings, "later": True}))
    with pytest.raises(ValueError, match=f"argument 'width': expected {WIDTH}, which .* has, got 7"):
        RepresentationStore.create(tmp_path, VERSION, 7)
    with pytest.raises(ValueError, match=r"argument 'dtype': expected float16, which .* has, got float32"):
        new_store(tmp_path, "float32")


def test_bad_input_is_refused_and_nothing_appended(tmp_path: Path) -> None:
    for arguments, message in (
        ({"width": 0}, "'width': expected at least 1, got 0"),
        ({"width": 4, "dtype": "int8"}, "'dtype': expected one of float16, float32, got 'int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            RepresentationStore.create(tmp_path / "bad", VERSION, **arguments)
    with pytest.raises(FileNotFoundError, match="holds no representation store"):
        RepresentationStore(tmp_path)
    new_store(tmp_path)
    store = fill(tmp_path, 2)
    with pytest.raises(ValueError, match="'shard': expected letters"):
        store.writer("../elsewhere")
    with store.writer("other") as writer:
        infinite = row_vectors(2, 2)
        infinite[1, 3] = 1e6
        for ids, vectors, message in (
            (row_ids(2, 2), row_vectors(2, 3), r"expected \[ids, width\] = \[2, 24\], got \[3, 24\]"),
            (row_ids(2, 2), row_vectors(2, 2)[:, 1:], r"got \[2, 23\]"),
            (row_ids(1, 2), row_vectors(1, 2), f"expected new ids, each once, got '{row_ids(1, 1)[0]}' again"),
            (row_ids(5, 1) * 2, row_vectors(5, 2), "each once"),
            (row_ids(2, 2), infinite, f"finite in float16, not so '{row_ids(3, 1)[0]}'"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.append(ids, vectors)
        writer.append(row_ids(2, 2), row_vectors(2, 2))
    store = RepresentationStore(tmp_path)
    assert_rows(store, [0, 1, 2, 3])
    for rows in ([4], [-1], [0, 17]):
        with pytest.raises(IndexError, match="expected numbers from 0 to 3"):
            store[rows]
    with pytest.raises(KeyError, match="has no row 'nothing'"):
        store.rows(["nothing"])
    (tmp_path / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="expected a store of format 1"):
        RepresentationStore(tmp_path)


def test_one_writer_a_shard(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.writer("a"):
        with pytest.raises(BlockingIOError, match="another process writes to this shard"):
            store.writer("a")
        with store.writer("b"):
            pass
    with store.writer("a"):
        pass


def _append_rows(folder: Path, rank: int, ranks: int, count: int) -> None:
    store = new_store(folder)
    with store.writer(f"rank-{rank}") as writer:
        for number in range(rank, count, ranks):
            writer.append(row_ids(number, 1), row_vectors(number, 1))


def test_processes_write_shards_of_one_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_rows, args=(tmp_path, rank, 3, 30)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert_rows(RepresentationStore(tmp_path), [number for rank in range(3) for number in range(rank, 30, 3)])


def test_merged_by_links(tmp_path: Path) -> None:
    for name, first in (("one", 0), ("two", 10)):
        new_store(tmp_path / name)
        fill(tmp_path / name, 10, first=first)
    target = new_store(tmp_path / "all")
    sources = [RepresentationStore(tmp_path / name) for name in ("one", "two")]
    merged = target.merge(sources)
    assert_rows(merged, list(range(20)))
    assert os.stat(tmp_path / "one/shards/main/vectors").st_nlink == 2  # nothing was copied
    assert_rows(merged.merge(sources), list(range(20)))  # once is enough
    assert_rows(fill(tmp_path / "one", 1, first=30), [*range(10), 30])
    assert len(RepresentationStore(tmp_path / "all")) == 21  # it is the same shard
    with merged.writer("main"), pytest.raises(BlockingIOError):
        RepresentationStore(tmp_path / "one").writer("main")


def test_merged_by_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    new_store(tmp_path / "one")
    source = fill(tmp_path / "one", 10)
    monkeypatch.setattr(os, "link", refuse)
    merged = new_store(tmp_path / "all").merge([source])
    assert_rows(merged, list(range(10)))
    with pytest.raises(ValueError, match="is in the store already"):
        merged.merge([source])


def test_only_stores_of_one_kind_are_merged(tmp_path: Path) -> None:
    target = new_store(tmp_path / "all")
    fill(tmp_path / "all", 3)
    target = RepresentationStore(tmp_path / "all")
    new_store(tmp_path / "foreign", version=replace(VERSION, weights="c"))
    with pytest.raises(ForeignRepresentationsError, match="expected those of this model"):
        target.merge([RepresentationStore(tmp_path / "foreign")])
    with pytest.raises(ValueError, match="expected 24 columns of float16, got 24 of float32"):
        target.merge([new_store(tmp_path / "wide", "float32")])
    new_store(tmp_path / "twice")
    with pytest.raises(ValueError, match="is in the store already"):
        target.merge([fill(tmp_path / "twice", 1, first=2)])
    assert_rows(RepresentationStore(tmp_path / "all"), [0, 1, 2])
    assert len(list((tmp_path / "all" / "shards").iterdir())) == 1


def test_a_million_vectors_open_at_once(tmp_path: Path) -> None:
    rows, width = 1_000_000, 8
    store = RepresentationStore.create(tmp_path, VERSION, width)
    with store.writer() as writer:
        for first in range(0, rows, 250_000):
            ids = [str(number) for number in range(first, first + 250_000)]
            writer.append(ids, np.full((250_000, width), first // 250_000, np.float16))
    start = time.perf_counter()
    store = RepresentationStore(tmp_path, VERSION)
    row, (text,) = store[rows - 1], store.ids([rows - 1])
    seconds = time.perf_counter() - start
    assert row[0] == 3 and text == str(rows - 1)
    assert seconds < 0.2
