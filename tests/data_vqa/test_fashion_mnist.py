"""The reader of Fashion-MNIST, on small files of its format and, where they are, on the real ones."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from data_vqa.small_clothes import REAL, idx, write_small_clothes

from vleff.data.fashion_mnist import read_fashion_mnist


@pytest.mark.parametrize("compressed", [True, False])
def test_what_was_written_is_read(compressed: bool, tmp_path: Path) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, size=(5, 28, 28))
    classes = np.array([3, 1, 4, 1, 9])
    for name, values in (("t10k-images-idx3-ubyte", pictures), ("t10k-labels-idx1-ubyte", classes)):
        content = idx(values)
        (tmp_path / f"{name}{'.gz' * compressed}").write_bytes(gzip.compress(content) if compressed else content)
    read = read_fashion_mnist(tmp_path, "test")
    assert len(read) == 5 and read.pictures.dtype == np.uint8
    assert np.array_equal(read.pictures, pictures) and np.array_equal(read.classes, classes)


@pytest.mark.skipif(not REAL.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_real_files() -> None:
    train, test = read_fashion_mnist(REAL), read_fashion_mnist(REAL, "test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert np.bincount(train.classes).tolist() == [6000] * 10 and np.bincount(test.classes).tolist() == [1000] * 10
    assert 70 < train.pictures.mean() < 76  # 72.9, as published


def test_bad_files(tmp_path: Path) -> None:
    folder = write_small_clothes(tmp_path)
    with pytest.raises(ValueError, match="argument 'split': expected 'train' or 'test', got 'dev'"):
        read_fashion_mnist(folder, "dev")
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    content = gzip.decompress(images.read_bytes())
    for bad, message in (
        (gzip.compress(content[:-1]), r"expected 23520 values for \[30, 28, 28\], got 23519"),
        (gzip.compress(b"\0\0\x09\3" + content[4:]), "expected an IDX file of bytes with 3 dimensions"),
        (gzip.compress(b""), "expected an IDX file of bytes with 3 dimensions"),
        (images.read_bytes()[:-20], "expected a file compressed by gzip"),
        (b"no gzip", "expected a file compressed by gzip"),
        (gzip.compress(idx(np.zeros((30, 28, 27)))), r"expected pictures \[30, 28, 28\], one for each label, got"),
    ):
        images.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            read_fashion_mnist(folder)
    labels.unlink()
    images.write_bytes(gzip.compress(content))
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte\.gz there.*dataset-fashion-mnist"):
        read_fashion_mnist(folder)
