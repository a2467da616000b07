"""Results survive kills whole, come in order, and once each, whatever shards they are in."""

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vleff.unanswerable import result_shards
from vleff.unanswerable.result_shards import ResultShard, read_numbers, read_results

KILLS = 15


def content(number: int) -> str:
    return f"{number}: " + "x" * (number * 37 % 500)


def add(folder: Path, name: str, *numbers: int) -> None:
    with ResultShard(folder, name) as shard:
        shard.add((number, content(number)) for number in numbers)


def killed_after(seconds: float, work: Callable[[Callable[[int], object]], object]) -> int:
    """Forks, kills the child some time after it first said something, and returns the last number it said."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda number: os.write(write, f"{number}\n".encode()))
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        first = said.readline()
        assert first, "the child failed"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        lines = (first + said.read()).split(b"\n")[:-1]
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    return int(lines[-1])


def test_shards_are_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_shards, "_ROWS", 3)
    assert list(read_results(tmp_path / "none")) == [] == list(read_numbers(tmp_path / "none"))
    numbers = list(range(50))
    random.Random(0).shuffle(numbers)
    add(tmp_path, "a", *numbers[:20])
    add(tmp_path, "b", *numbers[15:33])  # some twice
    add(tmp_path, "c")
    add(tmp_path, "a", *numbers[33:48], *numbers[:3])
    wanted = sorted(numbers[:48])
    assert list(read_numbers(tmp_path)) == wanted
    assert list(read_results(tmp_path)) == [(number, content(number)) for number in wanted]


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    add(tmp_path, "a", 1)
    with ResultShard(tmp_path, "a") as shard:
        shard.add([(0, "new"), (1, "other")])
    assert list(read_results(tmp_path)) == [(0, "new"), (1, content(1))]


def test_one_that_reads_does_not_stop_one_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_shards, "_ROWS", 2)
    monkeypatch.setattr(result_shards, "_SECONDS_TO_WAIT", 0.0)
    add(tmp_path, "a", 0, 1, 2, 3, 4)
    reading = read_numbers(tmp_path)
    assert next(reading) == 0
    with ResultShard(tmp_path, "a") as one, ResultShard(tmp_path, "a") as two:
        one.add([(7, "")])
        two.add([(6, "")])
        assert list(reading) == [1, 2, 3, 4, 6, 7]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    generator, torn = random.Random(0), 0
    acknowledged = -1
    for _ in range(KILLS):

        def work(say: Callable[[int], object]) -> None:
            next_one = max(read_numbers(tmp_path), default=-1) + 1
            say(next_one - 1)
            with ResultShard(tmp_path, "a") as shard:
                while True:
                    shard.add((number, content(number)) for number in range(next_one, next_one + 9))
                    next_one += 9
                    say(next_one - 1)

        acknowledged = max(acknowledged, killed_after(generator.uniform(0, 0.2), work))
        torn += (tmp_path / "a.sqlite-journal").exists()
        numbers = list(read_numbers(tmp_path))
        assert numbers == list(range(len(numbers))) and len(numbers) % 9 == 0
        assert acknowledged < len(numbers) + 1 <= acknowledged + 11
    assert acknowledged > KILLS
    assert torn  # some kills hit a transaction in the middle
    assert list(read_results(tmp_path)) == [(number, content(number)) for number in numbers]


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("nonsense" * 1000)
    for use in (lambda: ResultShard(tmp_path, "a"), lambda: list(read_numbers(tmp_path))):
        with pytest.raises(ValueError, match=r"a\.sqlite: expected a shard of results, got file is not a database"):
            use()


def test_a_shard_in_use_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_shards, "_SECONDS_TO_WAIT", 0.2)
    add(tmp_path, "a", 0)
    other = sqlite3.connect(tmp_path / "a.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    with pytest.raises(OSError, match="database is locked"):
        add(tmp_path, "a", 1)
    assert time.monotonic() - start > 0.15
    other.close()
    add(tmp_path, "a", 1)
    assert list(read_numbers(tmp_path)) == [0, 1]
