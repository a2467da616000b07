"""A writer that is killed loses nothing that it acknowledged, and leaves nothing half-written."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from methods.dide.store_cases import WIDTH, assert_rows, fill, new_store, row_ids, row_vectors

from vleff.dide import shard
from vleff.dide.store import RepresentationStore

KILLS = 20
# appends batches of 1 to 40 rows without end, and says after each how many rows are there
WRITER = """
import os, random, sys
from methods.dide.store_cases import row_ids, row_vectors
from vleff.dide.store import RepresentationStore

generator = random.Random(int(sys.argv[2]))
with RepresentationStore(sys.argv[1]).writer() as writer:
    rows = len(writer.known)
    os.write(1, b"ready\\n")
    while True:
        count = generator.randint(1, 40)
        writer.append(row_ids(rows, count), row_vectors(rows, count))
        rows += count
        os.write(1, f"{rows}\\n".encode())
"""


def run_until_killed(folder: Path, seed: int, appends: int, seconds: float) -> int:
    """Kills a writer some time after so many appends; how many rows it acknowledged, 0 if none."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(folder), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    acknowledged = [process.stdout.readline() for _ in range(appends)]
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split(b"\n")[:-1]  # the last one ends, or was cut off
    assert process.wait(30) == -signal.SIGKILL
    return int(acknowledged[-1]) if acknowledged else 0


def test_killed_at_random_moments(tmp_path: Path) -> None:
    new_store(tmp_path)
    generator, acknowledged, torn = random.Random(0), 0, 0
    for kill in range(KILLS):
        appends, seconds = generator.randint(0, 3), generator.uniform(0, 0.02)
        acknowledged = max(acknowledged, run_until_killed(tmp_path, kill, appends, seconds))
        store = RepresentationStore(tmp_path)
        assert acknowledged <= len(store) <= acknowledged + 40
        assert_rows(store, list(range(len(store))))
        torn += (tmp_path / "shards/main/vectors").stat().st_size > len(store) * WIDTH * 2
    assert acknowledged > KILLS
    assert torn  # some kills hit an append in the middle


class Killed(BaseException):
    """Ends an append at once, as a kill does: nothing catches it."""


@pytest.mark.parametrize("calls", range(8))
@pytest.mark.parametrize("half", [False, True])
def test_dead_before_or_within_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, half: bool
) -> None:
    new_store(tmp_path)
    fill(tmp_path, 5)

    pwrite, fdatasync, done = os.pwrite, os.fdatasync, 0

    def dies_now() -> bool:
        nonlocal done
        done += 1
        return done > calls

    def write(file: int, content: memoryview, offset: int) -> int:
        if not dies_now():
            return pwrite(file, content, offset)
        if half:
            pwrite(file, content[: len(content) // 2], offset)
        raise Killed

    def sync(file: int) -> None:
        if dies_now():
            raise Killed
        fdatasync(file)

    monkeypatch.setattr(shard.os, "pwrite", write)
    monkeypatch.setattr(shard.os, "fdatasync", sync)
    with pytest.raises(Killed):
        fill(tmp_path, 4, first=5)
    monkeypatch.undo()
    # the journal's record is the 7th call; when only its sync is missing, the rows are there, but not acknowledged
    kept = 9 if calls == 7 else 5
    assert_rows(RepresentationStore(tmp_path), list(range(kept)))
    assert_rows(fill(tmp_path, 3, first=kept), list(range(kept + 3)))
    assert (tmp_path / "shards/main/vectors").stat().st_size == (kept + 3) * WIDTH * 2


@pytest.mark.parametrize(
    "garbage", [b"\0" * 100, b"vlf1" * 20, random.Random(0).randbytes(77)], ids=["zeros", "magic", "random"]
)
def test_garbage_behind_the_end_is_cut_off(tmp_path: Path, garbage: bytes) -> None:
    new_store(tmp_path)
    fill(tmp_path, 5)
    for name in shard.FILES:
        with (tmp_path / "shards/main" / name).open("ab") as file:
            file.write(garbage)
    assert_rows(RepresentationStore(tmp_path), list(range(5)))
    assert_rows(fill(tmp_path, 2, first=5), list(range(7)))


def test_every_prefix_of_the_journal_is_a_store(tmp_path: Path) -> None:
    new_store(tmp_path)
    with RepresentationStore(tmp_path).writer() as writer:
        for number in range(6):
            writer.append(row_ids(number, 1), row_vectors(number, 1))
    journal = tmp_path / "shards/main/journal"
    whole = journal.read_bytes()
    sizes = []
    for end in range(len(whole) + 1):
        journal.write_bytes(whole[:end])
        store = RepresentationStore(tmp_path)
        assert_rows(store, list(range(len(store))))
        sizes.append(len(store))
    assert sizes == sorted(sizes) and set(sizes) == set(range(7))


@pytest.mark.parametrize("name", ["vectors", "ids", "id_ends"])
def test_files_that_were_cut_off_are_refused(tmp_path: Path, name: str) -> None:
    new_store(tmp_path)
    fill(tmp_path, 5)
    path = tmp_path / "shards/main" / name
    path.write_bytes(path.read_bytes()[:-1])
    for use in (lambda: RepresentationStore(tmp_path), lambda: shard.ShardWriter(path.parent, WIDTH, np.dtype("<f2"))):
        with pytest.raises(ValueError, match=r"expected \d+ bytes, as its journal says, got \d+: the file was cut off"):
            use()
