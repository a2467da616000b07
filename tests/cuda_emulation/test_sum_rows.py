"""The compiled CUDA kernel of sum_rows, run on the CPU, against the CPU's op to the bit."""

import pytest
import torch
from cuda_kernels import KERNELS
from torch import Tensor

from vleff.ops import sum_rows

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import EmulationError, boolean, data_type, int64, launch_alike, pointer, struct

pytestmark = pytest.mark.long

SOURCE = "sum_rows_kernel.cu"


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


def emulated(build: EmulatedLibrary, rows: Tensor, index: Tensor, stored: int, dtype: torch.dtype) -> Tensor:
    count, width = rows.shape
    problem = [data_type(rows.dtype), data_type(dtype), *map(int64, (count, stored, width)), pointer("rows")]
    problem += [struct(pointer("index"), boolean(index.dtype == torch.int64)), pointer("sums")]
    inputs, results = {"rows": rows, "index": index}, {"sums": ((stored, width), dtype)}
    return launch_alike(build, "vleff_sum_rows_cuda", problem, inputs, results)["sums"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count, width, stored", [(1, 1, 1), (99, 65, 13), (40, 300, 70), (0, 5, 3)])
def test_bits_are_those_of_the_cpu(
    build: EmulatedLibrary, dtype: torch.dtype, count: int, width: int, stored: int
) -> None:
    rows = torch.randn(count, width)
    index = torch.randint(stored, (count,), dtype=torch.int32 if count == 40 else torch.int64)
    expected = sum_rows(rows, index, stored).to(dtype)
    assert torch.equal(emulated(build, rows, index, stored, dtype), expected)
    rows = rows.to(dtype)
    assert torch.equal(emulated(build, rows, index, stored, dtype), sum_rows(rows, index, stored))


def test_wrong_row_numbers_are_left_out(build: EmulatedLibrary) -> None:
    rows = torch.randn(5, 3)
    sums = emulated(build, rows, torch.tensor([-1, 2**62, 1, 2, -(2**63)]), 2, torch.float32)
    assert torch.equal(sums, torch.stack([torch.zeros(3), rows[2]]))


CHANGES = [
    Change("forget a row", "sum_rows.cuh", "found &= found - 1", "found = 0"),
    Change("take the highest first", "sum_rows.cuh", "__clz(__brev(found))", "31 - __clz(found)"),
    Change("read past the last number", "sum_rows.cuh", "first + lane < count", "first <= count"),
    Change("store past the last column", "sum_rows.cuh", "if (column < problem.width) {", "{"),
]


@pytest.mark.parametrize("change", CHANGES if is_full_run() else CHANGES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    rows, index = torch.randn(43, 130), torch.randint(3, (43,))
    try:
        found = emulated(build_changed(SOURCE, {}, change), rows, index, 3, torch.float32)
    except EmulationError:
        return
    assert not torch.equal(found, sum_rows(rows, index, 3))
