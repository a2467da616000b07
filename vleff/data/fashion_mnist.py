"""Reads Fashion-MNIST (Zalando SE, MIT licence): 70,000 grey pictures of 28 x 28 pixels, of ten kinds of clothes."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EDGE = 28
FILES = {"train": "train", "test": "t10k"}
HOW_TO_GET = (
    "Fashion-MNIST is the Debian package dataset-fashion-mnist (/usr/share/datasets/fashion-mnist), "
    "or https://github.com/zalandoresearch/fashion-mnist"
)


@dataclass(frozen=True)
class ClothesPictures:
    """Pictures of clothes.

    Attributes:
        pictures: uint8 [count, 28, 28], 0 is the background.
        classes: uint8 [count], 0 to 9.
    """

    pictures: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


def read_fashion_mnist(folder: str | Path, split: str = "train") -> ClothesPictures:
    """The pictures of one of Fashion-MNIST's own splits.

    Args:
        folder: of its files, `train-images-idx3-ubyte` and so on, plain or compressed (`.gz`).
        split: "train" (60,000) or "test" (10,000).

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
        ValueError: the split is unknown, or a file is not of the format.
    """
    if split not in FILES:
        raise ValueError(f"argument 'split': expected 'train' or 'test', got {split!r}")
    pictures = _read_idx(Path(folder) / f"{FILES[split]}-images-idx3-ubyte", 3)
    classes = _read_idx(Path(folder) / f"{FILES[split]}-labels-idx1-ubyte", 1)
    if pictures.shape != (len(classes), EDGE, EDGE):
        expected = f"[{len(classes)}, {EDGE}, {EDGE}]"
        raise ValueError(f"{folder}: expected pictures {expected}, one for each label, got {list(pictures.shape)}")
    return ClothesPictures(pictures, classes)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A file in the IDX format: two zeros, 8 for bytes, the number of dimensions, their sizes, the values."""
    compressed = path.with_name(f"{path.name}.gz")
    found = next((candidate for candidate in (path, compressed) if candidate.exists()), None)
    if found is None:
        raise FileNotFoundError(f"expected {path} or {compressed.name} there. {HOW_TO_GET}")
    try:
        content = gzip.decompress(found.read_bytes()) if found == compressed else found.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{found}: expected a file compressed by gzip, got {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{found}: expected an IDX file of bytes with {dimensions} dimensions")
    shape = np.frombuffer(content[4:header], ">u4").astype(int)
    if len(content) - header != shape.prod():
        raise ValueError(f"{found}: expected {shape.prod()} values for {shape.tolist()}, got {len(content) - header}")
    return np.frombuffer(content[header:], np.uint8).reshape(shape)
