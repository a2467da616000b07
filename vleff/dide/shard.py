"""One shard of a representation store: rows and their ids in files that grow at their ends, and a journal.

A shard is a folder with four files:

    vectors   the rows, one after the other, little-endian
    ids       the rows' ids, UTF-8, one after the other
    id_ends   int64 for each row: where its id ends in `ids`
    journal   one record for each append that is complete: rows and bytes of ids so far, and a checksum

The first three are synced to the disk before the journal's record is written and synced. What the last valid record
says is therefore on the disk as a whole; anything behind it is what an interrupted append left, which readers never
look at and the next writer cuts off. Committed bytes never change.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vleff.training.checkpoints import reading

VECTORS, IDS, ID_ENDS, JOURNAL = FILES = ("vectors", "ids", "id_ends", "journal")

_RECORD = struct.Struct("<4sqqI")  # magic, rows, bytes of ids, checksum of what precedes
_MAGIC = b"vlf1"
_END = np.dtype("<i8")


class ShardReader:
    """What is committed of a shard when it is opened, memory-mapped.

    Attributes:
        rows: how many there are.
        vectors: [rows, width] of the store's dtype. Writing to it changes nothing on the disk.

    Args:
        folder: of the shard.
        width: columns of a row.
        dtype: of the vectors.

    Raises:
        ValueError: a file is shorter than its journal says.
    """

    def __init__(self, folder: Path, width: int, dtype: np.dtype) -> None:
        self._folder = folder
        with (folder / JOURNAL).open("rb") as journal:
            self.rows, id_bytes, _ = _committed(journal.fileno())
        self.vectors = _map(folder / VECTORS, dtype, (self.rows, width))
        self._ends = _map(folder / ID_ENDS, _END, (self.rows,))
        self._ids = _map(folder / IDS, np.dtype(np.uint8), (id_bytes,))

    def id_of(self, row: int) -> str:
        """The id of a row, counted from 0 within the shard; a ValueError names the shard if it is damaged."""
        start = int(self._ends[row - 1]) if row else 0
        with reading(self._folder):
            return bytes(self._ids[start : int(self._ends[row])]).decode()

    def ids(self) -> list[str]:
        """The ids of all rows; a ValueError names the shard if they are damaged."""
        text, ends = self._ids.tobytes(), self._ends.tolist()
        with reading(self._folder):
            return [text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]


class ShardWriter:
    """Appends to a shard, which it makes if there is none. One writer at a time; a context manager.

    Attributes:
        rows: how many are committed.

    Args:
        folder: of the shard, in a folder that exists.
        width: columns of a row.
        dtype: of the vectors.

    Raises:
        BlockingIOError: another process writes to the shard.
        ValueError: a file is shorter than its journal says.
    """

    def __init__(self, folder: Path, width: int, dtype: np.dtype) -> None:
        self._width, self._dtype = width, dtype
        folder.mkdir(exist_ok=True)
        self._files = {name: os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666) for name in FILES}
        try:
            self._lock(folder)
            self.rows, self._id_bytes, self._journal_bytes = _committed(self._files[JOURNAL])
            for name, size in self._sizes().items():
                if os.fstat(self._files[name]).st_size < size:
                    raise ValueError(_too_short(folder / name, size))
                os.ftruncate(self._files[name], size)
            sync_folder(folder)
            sync_folder(folder.parent)
        except BaseException:
            self.close()
            raise

    def append(self, ids: Sequence[str], vectors: NDArray) -> None:
        """Appends rows; when it returns they are on the disk for good, when it is interrupted all or none are.

        Args:
            ids: one for each row.
            vectors: [len(ids), width] of the shard's dtype.
        """
        if not ids:
            return
        encoded = [text.encode() for text in ids]
        ends = self._id_bytes + np.cumsum([len(text) for text in encoded], dtype=_END)
        rows = np.ascontiguousarray(vectors, self._dtype)
        data = {VECTORS: rows.data.cast("B"), IDS: memoryview(b"".join(encoded)), ID_ENDS: ends.data.cast("B")}
        offsets = self._sizes()
        for name, content in data.items():
            _write(self._files[name], content, offsets[name])
        for name in data:
            os.fdatasync(self._files[name])
        count, id_bytes = self.rows + len(ids), int(ends[-1])
        _write(self._files[JOURNAL], memoryview(_record(count, id_bytes)), self._journal_bytes)
        os.fdatasync(self._files[JOURNAL])
        self.rows, self._id_bytes, self._journal_bytes = count, id_bytes, self._journal_bytes + _RECORD.size

    def close(self) -> None:
        """Closes the files and lets others write."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sizes(self) -> dict[str, int]:
        """The committed bytes of each file."""
        return {
            VECTORS: self.rows * self._width * self._dtype.itemsize,
            IDS: self._id_bytes,
            ID_ENDS: self.rows * _END.itemsize,
            JOURNAL: self._journal_bytes,
        }

    def _lock(self, folder: Path) -> None:
        # on the journal itself: a shard that stands in two stores by hard links has one writer, too
        try:
            fcntl.flock(self._files[JOURNAL], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process writes to this shard", str(folder)) from None


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _record(rows: int, id_bytes: int) -> bytes:
    content = _RECORD.pack(_MAGIC, rows, id_bytes, 0)[:-4]
    return content + struct.pack("<I", zlib.crc32(content))


def _committed(journal: int) -> tuple[int, int, int]:
    """Rows and bytes of ids that the last valid record says, and where it ends in the journal."""
    end = os.fstat(journal).st_size // _RECORD.size * _RECORD.size
    while end > 0:
        record = os.pread(journal, _RECORD.size, end - _RECORD.size)
        _, rows, id_bytes, _ = _RECORD.unpack(record)
        if record == _record(rows, id_bytes):
            return rows, id_bytes, end
        end -= _RECORD.size
    return 0, 0, 0


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    if path.stat().st_size < size:
        raise ValueError(_too_short(path, size))
    return np.memmap(path, dtype, "c", shape=shape)


def _too_short(path: Path, size: int) -> str:
    return f"{path}: expected {size} bytes, as its journal says, got {path.stat().st_size}: the file was cut off"


def _write(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
