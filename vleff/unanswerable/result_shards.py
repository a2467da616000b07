"""What became of a corpus' paragraphs, in shards: one SQLite file for each process that works on them.

A shard grows by transactions, each on the disk as a whole or not at all, whenever the process or the machine dies.
Rows are read in the order of the paragraphs, few at a time: memory does not grow with a shard, and no reader keeps a
writer waiting for long.
"""

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType

_SUFFIX = ".sqlite"
_SECONDS_TO_WAIT = 60.0  # for another process that reads or writes the same shard
_ROWS = 256  # that are read at a time


class ResultShard:
    """Adds to a shard, which it makes if there is none; a context manager.

    Args:
        folder: of all shards, made if it is missing.
        name: of this one. Processes that add at the same time should each have one of their own; if they do not,
            they wait for each other, and nothing is lost.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{name}{_SUFFIX}"
        self._database = _connect(self._path)

    def add(self, rows: Iterable[tuple[int, str]]) -> None:
        """Adds results by the number of the paragraph; those that the shard has stay as they are.

        When it returns they are on the disk; when it is interrupted all are or none is.

        Raises:
            OSError: they could not be written; the disk may be full.
        """
        try:
            with self._database:
                self._database.executemany("INSERT OR IGNORE INTO results VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: results could not be written: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def __enter__(self) -> "ResultShard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_results(folder: Path) -> Iterator[tuple[int, str]]:
    """The results of all shards in the order of the paragraphs, one for each.

    What is added meanwhile may come or not.
    """
    rows = heapq.merge(*(_read(path, "number, content") for path in _shards(folder)), key=lambda row: row[0])
    return (next(same) for _, same in groupby(rows, key=lambda row: row[0]))


def read_numbers(folder: Path) -> Iterator[int]:
    """The numbers of the paragraphs that have results, ascending, each once."""
    numbers = heapq.merge(*(_read(path, "number") for path in _shards(folder)))
    return (number for (number,), _ in groupby(numbers))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_SUFFIX}"))


def _read(path: Path, columns: str) -> Iterator[tuple]:
    last = -1
    while True:
        database = _connect(path)
        try:
            query = f"SELECT {columns} FROM results WHERE number > ? ORDER BY number LIMIT {_ROWS}"
            rows = database.execute(query, (last,)).fetchall()
        finally:
            database.close()
        yield from rows
        if len(rows) < _ROWS:
            return
        last = rows[-1][0]


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT)
    try:
        database.execute("CREATE TABLE IF NOT EXISTS results (number INTEGER PRIMARY KEY, content TEXT NOT NULL)")
    except sqlite3.OperationalError as error:
        database.close()
        raise OSError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        database.close()
        raise ValueError(f"{path}: expected a shard of results, got {error}") from error
    return database
