"""RepresentationStore: representations that were computed once, on the disk, memory-mapped.

A store is a folder with `store.json`, which says what its rows are, and `shards`, with a folder for each process that
encoded some of them (`shard.py`). It holds the rows of all shards, shard after shard by their names.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vleff.dide.shard import ID_ENDS, IDS, JOURNAL, VECTORS, ShardReader, ShardWriter, sync_folder
from vleff.dide.version import RepresentationVersion
from vleff.training.checkpoints import reading, replace_file

DTYPES = ("float16", "float32")

_MANIFEST, _SHARDS, _FORMAT = "store.json", "shards", 1
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class RepresentationStore:
    """The rows that are committed to a store when it is opened; what is appended later shows when it is opened anew.

    Attributes:
        folder: of the store.
        version: of its representations.
        width: columns of a row.
        dtype: NumPy's, float16 or float32.

    Args:
        folder: of a store that `create` made.
        version: that its representations must have; None takes any.

    Raises:
        FileNotFoundError: there is no store in the folder.
        ForeignRepresentationsError: the store has another version.
        ValueError: its files are damaged, or of a format that this version of vleff does not know.
    """

    def __init__(self, folder: str | Path, version: RepresentationVersion | None = None) -> None:
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        with reading(self.folder):
            self.version = RepresentationVersion.from_dict(manifest["version"])
            self.width, self.dtype = int(manifest["width"]), np.dtype(manifest["dtype"]).newbyteorder("<")
        if version is not None:
            self.version.check(version, self.folder)
        with reading(self.folder):
            paths = _shard_folders(self.folder)
            self._shards = {path.name: ShardReader(path, self.width, self.dtype) for path in paths}
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards.values())])

    @classmethod
    def create(
        cls, folder: str | Path, version: RepresentationVersion, width: int, dtype: str = "float16"
    ) -> "RepresentationStore":
        """Makes an empty store; one that is there already is opened. Several processes may do so at once.

        Args:
            folder: of the store; made if it is missing.
            version: of the representations to come.
            width: columns of a row.
            dtype: "float16" or "float32".

        Raises:
            ForeignRepresentationsError: there is a store of another version.
            ValueError: there is one of another width or dtype; or an argument is out of its range.
        """
        if dtype not in DTYPES:
            raise ValueError(f"argument 'dtype': expected one of {', '.join(DTYPES)}, got {dtype!r}")
        if width < 1:
            raise ValueError(f"argument 'width': expected at least 1, got {width}")
        folder = Path(folder)
        (folder / _SHARDS).mkdir(parents=True, exist_ok=True)
        manifest = {"format": _FORMAT, "width": width, "dtype": dtype, "version": version.to_dict()}
        text = json.dumps(manifest, indent=1) + "\n"
        with _alone(folder):
            if not (folder / _MANIFEST).exists():
                replace_file(folder / _MANIFEST, lambda part: part.write_text(text))
                sync_folder(folder)
        store = cls(folder, version)
        for name, expected, found in (("width", width, store.width), ("dtype", dtype, store.dtype.name)):
            if found != expected:
                raise ValueError(f"argument '{name}': expected {found}, which {folder} has, got {expected}")
        return store

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: ArrayLike) -> NDArray:
        """The vectors of some rows: [n] -> [n, width], copied; one row number -> [width].

        Raises:
            IndexError: there is no such row.
        """
        numbers = np.asarray(rows, np.int64)
        flat = np.atleast_1d(numbers)
        self._check_rows(flat)
        found = np.empty((len(flat), self.width), self.dtype)
        shards = np.searchsorted(self._starts, flat, "right") - 1
        for number, shard in enumerate(self._shards.values()):
            here = shards == number
            found[here] = shard.vectors[flat[here] - self._starts[number]]
        return found if numbers.ndim else found[0]

    def blocks(self, rows: int) -> Iterator[tuple[int, NDArray]]:
        """Goes through all vectors: the number of a first row, and up to `rows` vectors [n, width] from there on.

        A row has the same place in its block, whatever other rows the store holds or will hold.
        """
        for start, shard in zip(self._starts.tolist(), self._shards.values(), strict=False):
            for first in range(0, shard.rows, rows):
                yield start + first, shard.vectors[first : first + rows]

    def ids(self, rows: Iterable[int] | None = None) -> list[str]:
        """The ids of some rows, or of all.

        Raises:
            IndexError: there is no such row.
        """
        if rows is None:
            return [text for shard in self._shards.values() for text in shard.ids()]
        numbers = np.asarray(list(rows), np.int64)
        self._check_rows(numbers)
        shards, found = list(self._shards.values()), []
        for row in numbers:
            number = int(np.searchsorted(self._starts, row, "right")) - 1
            found.append(shards[number].id_of(int(row - self._starts[number])))
        return found

    def rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of the rows with these ids; the first call reads all ids.

        Raises:
            KeyError: there is none.
        """
        try:
            return np.array([self._row_of[text] for text in ids], np.int64)
        except KeyError as error:
            raise KeyError(f"argument 'ids': {self.folder} has no row {error.args[0]!r}") from None

    def writer(self, shard: str = "main") -> "StoreWriter":
        """Opens a shard to append to; made if there is none. Every process writes to a shard of its own.

        Args:
            shard: its name, of letters, digits, "_", "-" and ".".

        Raises:
            BlockingIOError: another process writes to the shard.
            ValueError: that is no name of a shard.
        """
        if not _SHARD_NAME.fullmatch(shard):
            raise ValueError(f"argument 'shard': expected letters, digits, '_', '-' and '.', got {shard!r}")
        return StoreWriter(self, shard)

    def merge(self, sources: Sequence["RepresentationStore"]) -> "RepresentationStore":
        """Takes the shards of other stores in, by hard links where the disk is the same, else by copies.

        A linked shard is one and the same in both stores: rows that are appended to it show in both.

        Args:
            sources: stores of the same version, width and dtype.

        Returns:
            the store, opened anew.

        Raises:
            ForeignRepresentationsError: a store has another version.
            ValueError: a store has another width or dtype, or an id is in two of them.
        """
        taken = set(self.ids())
        for source in sources:
            source.version.check(self.version, source.folder)
            if (source.width, source.dtype) != (self.width, self.dtype):
                raise ValueError(
                    f"argument 'sources': expected {self.width} columns of {self.dtype}, got {source.width} of "
                    f"{source.dtype} in {source.folder}"
                )
            for path in _shard_folders(source.folder):
                if any(_same_file(path, own) for own in _shard_folders(self.folder)):
                    continue
                ids = source._shards[path.name].ids()
                if not taken.isdisjoint(ids):
                    twice = next(text for text in ids if text in taken)
                    raise ValueError(f"argument 'sources': {twice!r} of {path} is in the store already")
                taken.update(ids)
                _take_in(path, self.folder / _SHARDS)
        return RepresentationStore(self.folder, self.version)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.ids())}

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        outside = rows[(rows < 0) | (rows >= len(self))]
        if outside.size:
            raise IndexError(f"argument 'rows': expected numbers from 0 to {len(self) - 1}, got {outside[0]}")


class StoreWriter:
    """Appends rows to one shard of a store; a context manager.

    Attributes:
        known: the ids that were in the store when the writer was opened, and those that it appended.
    """

    def __init__(self, store: RepresentationStore, shard: str) -> None:
        self._width, self._dtype = store.width, store.dtype
        self._shard = ShardWriter(store.folder / _SHARDS / shard, store.width, store.dtype)
        try:  # only now that the lock is held: nobody else appends to this shard any more
            self.known = set(RepresentationStore(store.folder).ids())
        except BaseException:
            self._shard.close()
            raise

    def append(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Appends rows: when it returns they stay, whatever happens; when it is interrupted all or none are there.

        Args:
            ids: of the rows, each new to the store.
            vectors: [len(ids), width], of any floating-point dtype that NumPy knows; rounded to the store's.

        Raises:
            ValueError: a wrong shape, an id that is there already, or a value that is not finite in the store's
                dtype; nothing is appended then.
        """
        rows = np.asarray(vectors)
        if rows.shape != (len(ids), self._width):
            raise ValueError(
                f"argument 'vectors': expected [ids, width] = [{len(ids)}, {self._width}], got {list(rows.shape)}"
            )
        new = set(ids)
        if len(new) < len(ids) or not new.isdisjoint(self.known):
            twice = next(text for row, text in enumerate(ids) if text in self.known or text in ids[:row])
            raise ValueError(f"argument 'ids': expected new ids, each once, got {twice!r} again")
        with np.errstate(over="ignore"):
            rows = rows.astype(self._dtype)
        if not np.isfinite(rows).all():
            bad = ids[int(np.argmin(np.isfinite(rows).all(1)))]
            raise ValueError(f"argument 'vectors': expected values that are finite in {self._dtype}, not so {bad!r}")
        self._shard.append(ids, rows)
        self.known |= new

    def close(self) -> None:
        """Closes the shard and lets others write to it."""
        self._shard.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time through."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no representation store: {_MANIFEST} is not there")
    with reading(path):
        manifest = json.loads(path.read_text())
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: expected a store of format {_FORMAT}")
    return manifest


def _shard_folders(folder: Path) -> list[Path]:
    """Those that have a journal: without one, nothing was ever committed."""
    found = (path for path in (folder / _SHARDS).iterdir() if _SHARD_NAME.fullmatch(path.name))
    return sorted((path for path in found if (path / JOURNAL).exists()), key=lambda path: path.name)


def _same_file(shard: Path, other: Path) -> bool:
    return (shard / JOURNAL).samefile(other / JOURNAL)


def _take_in(shard: Path, folder: Path) -> None:
    """Puts a shard into the folder of shards, as a whole or not at all."""
    part = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    try:
        for name in (JOURNAL, VECTORS, IDS, ID_ENDS):  # of a copy, the journal must not be the newest file
            _link_or_copy(shard / name, part / name)
        sync_folder(part)
        name, number = shard.name, 1
        while (folder / name).exists():
            name, number = f"{shard.name}-{number}", number + 1
        part.rename(folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
