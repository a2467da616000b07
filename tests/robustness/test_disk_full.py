"""No space is left while something is saved: what was there stays whole, and no part of the new file remains."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vleff.training.checkpoints import check_settings, replace_file

SPACE = 4096


@contextmanager
def little_space() -> Iterator[None]:
    """No file may grow beyond SPACE bytes, as on a disk that is full then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with an error
    resource.setrlimit(resource.RLIMIT_FSIZE, (SPACE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_weights_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    replace_file(path, lambda part: save_file({"x": torch.ones(8)}, part))
    with little_space(), pytest.raises((OSError, SafetensorError)):
        replace_file(path, lambda part: save_file({"x": torch.zeros(SPACE)}, part))
    assert torch.equal(load_file(path)["x"], torch.ones(8))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_text_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    replace_file(path, lambda part: part.write_text("{}"))
    with little_space(), pytest.raises(OSError):
        replace_file(path, lambda part: part.write_text("x" * 2 * SPACE))
    assert path.read_text() == "{}"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_settings_are_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with little_space(), pytest.raises(OSError):
        check_settings(tmp_path / "job", {"name": "x" * 2 * SPACE})
    assert not list((tmp_path / "job").iterdir())
    check_settings(tmp_path / "job", {"name": "y"})
