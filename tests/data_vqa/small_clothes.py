"""A Fashion-MNIST of a few made pictures, for tests on machines without the real one."""

import gzip
from pathlib import Path

import numpy as np

REAL = Path("/usr/share/datasets/fashion-mnist")


def idx(values: np.ndarray) -> bytes:
    """Values in the IDX format."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_small_clothes(folder: Path, a_class: int = 3) -> Path:
    """Both splits, compressed; pictures of a class are bars at a height of its own, and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name in ("train", "t10k"):
        classes = generator.permutation(np.repeat(np.arange(10), a_class))
        pictures = generator.integers(0, 30, size=(len(classes), 28, 28))
        for picture, number in zip(pictures, classes, strict=True):
            picture[2 * number + 3 : 2 * number + 7, 4:24] += 200
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(classes)))
    return folder
