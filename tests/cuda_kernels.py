"""What the tests know of the CUDA kernels: the list of instantiations that the build reads too, and the toolkit."""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
KERNELS = CSRC / "kernels" / "cuda"
MOST_SHARED_BYTES = 99 * 1024  # of a block, on compute capability 8.6 and 8.9


class Tile(NamedTuple):
    element: str
    width: int
    stationary_rows: int
    streamed_rows: int


def listed_tiles(kernels: Path = KERNELS) -> list[Tile]:
    text = (kernels / "token_gather_attention_tiles.inc").read_text()
    found = re.findall(r"^VLEFF_TILE\((\w+), (\d+), (\d+), (\d+)\)$", text, re.MULTILINE)
    return [Tile(element, *map(int, sizes)) for element, *sizes in found]


def toolkit() -> Path:
    """The folder of the CUDA toolkit; skips the test where there is none."""
    candidates = [Path("/usr/local/cuda")]
    if nvcc := shutil.which("nvcc"):
        candidates.insert(0, Path(nvcc).resolve().parents[1])
    if "CUDA_HOME" in os.environ:
        candidates = [Path(os.environ["CUDA_HOME"])]
    for candidate in candidates:
        if (candidate / "bin" / "nvcc").exists() and (candidate / "include" / "cuda_runtime.h").exists():
            return candidate
    pytest.skip(f"no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in {', '.join(map(str, candidates))}")
