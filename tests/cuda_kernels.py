"""What the tests know of the CUDA kernels: the lists of instantiations that the build reads too, and the toolkit."""

import os
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
KERNELS = CSRC / "kernels" / "cuda"
OPS = sorted(path.name.removesuffix("_kernel.cu") for path in KERNELS.glob("*_kernel.cu"))
MOST_SHARED_BYTES = 99 * 1024  # of a block, on compute capability 8.6 and 8.9
ELEMENT_BYTES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}


class Tile(NamedTuple):
    """Of an attention"""

    element: str
    width: int
    stationary_rows: int
    streamed_rows: int


def listed_instantiations(op: str) -> list[tuple]:
    """(element, sizes...) of each VLEFF_TILE(...) in the op's list, csrc/kernels/cuda/OP_tiles.inc, if it has one"""
    file = KERNELS / f"{op}_tiles.inc"
    text = file.read_text() if file.exists() else ""
    found = re.findall(r"^VLEFF_TILE\((\w+)((?:, \d+)*)\)$", text, re.MULTILINE)
    return [(element, *map(int, sizes.split(", ")[1:])) for element, sizes in found]


def listed_tiles(op: str = "token_gather_attention") -> list[Tile]:
    return [Tile(*sizes) for sizes in listed_instantiations(op)]


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


def disassembler() -> Path:
    """nvdisasm, of the toolkit or of the wheel nvidia-cuda-nvdisasm; skips the test where there is none."""
    if (of_toolkit := toolkit() / "bin" / "nvdisasm").exists():
        return of_toolkit
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        pytest.skip("no nvdisasm in the CUDA toolkit: pip install nvidia-cuda-nvdisasm")
    return next(Path(file.locate()) for file in files if file.name == "nvdisasm")
