"""What can be known of the CUDA kernels without a GPU: how they compile, and that they are registered."""

import json
import re
import subprocess
from typing import NamedTuple

import pytest
import torch
from cuda_kernels import KERNELS, MOST_SHARED_BYTES, Tile, listed_tiles, toolkit
from torch._subclasses.fake_tensor import FakeTensorMode

import vleff.ops

MOST_INSTANTIATIONS = 12
ELEMENT_BYTES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}
MULTIPLICATIONS = {
    "float": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "__nv_bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "__half": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
}
MANGLED_TYPES = {"f": "float", "13__nv_bfloat16": "__nv_bfloat16", "6__half": "__half"}


def compiled_kernel(mangled_name: str) -> tuple[str, Tile]:
    """("forward", Tile("float", 32, 64, 64)) of the compiler's name of that kernel."""
    pattern = r"token_gather_attention_(forward|importance)INS0_4TileI(\w+?)Li(\d+)ELi(\d+)ELi(\d+)E"
    found = re.search(pattern, mangled_name)
    assert found, f"an unexpected kernel: {mangled_name}"
    kernel, element, *sizes = found.groups()
    return kernel, Tile(MANGLED_TYPES[element], *map(int, sizes))


class Compiled(NamedTuple):
    ptx: dict[tuple[str, Tile], str]
    ptxas_report: dict[tuple[str, Tile], str]


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def compiled(request, tmp_path_factory) -> Compiled:
    folder = tmp_path_factory.mktemp(request.param)
    source = KERNELS / "token_gather_attention_kernel.cu"
    options = ["-std=c++17", "-O3", f"-arch={request.param}", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
    command = [toolkit() / "bin" / "nvcc", *options, "-cubin", source, "-o", folder / "kernel.cubin"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, *functions = re.split(r"\.entry (?=\w)", (folder / f"{source.stem}.ptx").read_text())
    ptx = {compiled_kernel(re.match(r"\w+", text)[0]): text for text in functions}
    _, *reports = re.split(r"Compiling entry function '(?=\w)", run.stdout + run.stderr)
    return Compiled(ptx, {compiled_kernel(re.match(r"\w+", text)[0]): text for text in reports})


def test_the_list_of_tiles_is_short_and_fits_shared_memory():
    tiles = listed_tiles()
    assert 0 < len(tiles) <= MOST_INSTANTIATIONS
    for element in ELEMENT_BYTES:
        assert [tile.width for tile in tiles if tile.element == element] == [32, 64, 128, 256]
    for tile in tiles:
        rows = tile.stationary_rows + 4 * tile.streamed_rows  # queries; keys and values in two buffers each
        key_biases = 2 * tile.streamed_rows * 4
        assert rows * tile.width * ELEMENT_BYTES[tile.element] + key_biases <= MOST_SHARED_BYTES, tile


def test_every_listed_tile_is_compiled_and_no_other(compiled):
    listed = {(kernel, tile) for kernel in ("forward", "importance") for tile in listed_tiles()}
    assert compiled.ptx.keys() == listed
    assert compiled.ptxas_report.keys() == listed


def test_registers_do_not_spill(compiled):
    for name, report in compiled.ptxas_report.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, (name, report)


def test_kernels_use_tensor_cores_and_asynchronous_copies(compiled):
    for (kernel, tile), ptx in compiled.ptx.items():
        for instruction in (
            MULTIPLICATIONS[tile.element],
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
            "cp.async.cg.shared.global",
        ):
            assert instruction in ptx, (kernel, tile, instruction)
        if kernel == "forward":
            assert re.search(r"st\.global\.v4\.\w+", ptx), (tile, "128-bit stores")


def test_kernels_add_in_a_fixed_order(compiled):
    for name, ptx in compiled.ptx.items():
        assert not re.search(r"\b(atom|red)\.", ptx), name


@pytest.fixture
def cuda_build() -> str:
    version = json.loads(torch.ops.vleff.build_info())["cuda"]
    if not version:
        pytest.skip("the library was built without CUDA")
    return version


@pytest.mark.parametrize("op", ["token_gather_attention", "token_gather_attention_backward"])
def test_ops_are_registered_for_cuda(cuda_build, op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vleff::{op}", "CUDA")


@pytest.mark.parametrize("importance", [False, True])
def test_shapes_on_cuda_are_inferred_without_a_device(importance):
    with FakeTensorMode():
        q = torch.empty(20, 3, 64, dtype=torch.bfloat16, device="cuda")
        kv = torch.empty(30, 3, 64, dtype=torch.bfloat16, device="cuda")
        offsets = torch.empty(3, dtype=torch.int32, device="cuda")
        k_index = torch.empty(25, dtype=torch.int64, device="cuda")
        out, lse, sums = vleff.ops.token_gather_attention(
            q, kv, kv, offsets, offsets, 20, 25, k_index=k_index, importance=importance
        )
    assert (out.shape, out.dtype) == ((20, 3, 64), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((20, 3), torch.float32)
    assert sums.shape == ((25, 3) if importance else (0,))
    assert {tensor.device.type for tensor in (out, lse, sums)} == {"cuda"}
