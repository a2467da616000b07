"""What can be known of the CUDA kernels without a GPU: how they compile, and that they are registered."""

import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cuda_emulation.building import is_full_run
from cuda_kernels import (
    ELEMENT_BYTES,
    KERNELS,
    MOST_SHARED_BYTES,
    OPS,
    disassembler,
    listed_instantiations,
    listed_tiles,
    toolkit,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import vleff.ops

pytestmark = pytest.mark.long

MOST_INSTANTIATIONS = 12
REGISTERS, SHARED_BYTES = 65536, 164 * 1024  # of a multiprocessor of sm_80; sm_90 has more shared memory
RESERVED_BYTES = 1024  # of shared memory, for each block
MACHINE_MULTIPLICATIONS = {
    "float": "HMMA.1688.F32.TF32 ",
    "__nv_bfloat16": "HMMA.16816.F32.BF16 ",
    "__half": "HMMA.16816.F32 ",
}
MULTIPLICATIONS = {
    "float": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "__nv_bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "__half": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
}


class Kernel(NamedTuple):
    """Of "project<Tile<float, 64>, true>": "project", ("float", 64), ", true". Without a tile the last is "float"."""

    name: str
    tile: tuple | None
    others: str


def kernel_of(mangled_name: str) -> Kernel:
    """What the compiler's name of a kernel means."""
    command = ["c++filt", mangled_name]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"vleff::cuda::(\w+)(?:<(?:vleff::cuda::\w*Tile<(\w+)((?:, \d+)*)>)?([^()]*)>)?\(", name)
    assert found, f"an unexpected kernel: {name}"
    kernel, element, sizes, others = found.groups()
    tile = (element, *map(int, sizes.split(", ")[1:])) if element else None
    return Kernel(kernel, tile, (others or "").strip())


class Compiled(NamedTuple):
    op: str
    cubin: Path
    ptx: dict[Kernel, str]
    ptxas_report: dict[Kernel, str]


def compile_kernels(folder: Path, op: str, architecture: str) -> Compiled:
    source = KERNELS / f"{op}_kernel.cu"
    options = ["-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
    command = [toolkit() / "bin" / "nvcc", *options, "-cubin", source, "-o", folder / "kernel.cubin"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, *functions = re.split(r"\.entry (?=\w)", (folder / f"{source.stem}.ptx").read_text())
    _, *reports = re.split(r"Compiling entry function '(?=\w)", run.stdout + run.stderr)
    ptx, report = ({kernel_of(re.match(r"\w+", text)[0]): text for text in texts} for texts in (functions, reports))
    return Compiled(op, folder / "kernel.cubin", ptx, report)


@pytest.fixture(scope="module", params=["sm_80", "sm_90"] if is_full_run() else ["sm_80"])
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=OPS)
def compiled(request, architecture, tmp_path_factory) -> Compiled:
    return compile_kernels(tmp_path_factory.mktemp(f"{request.param}-{architecture}"), request.param, architecture)


@pytest.fixture(scope="module")
def machine_code(compiled) -> dict[Kernel, str]:
    """The instructions of each kernel that the GPU executes."""
    command = [disassembler(), "-c", compiled.cubin]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *functions = re.split(r"^\.text\.(?=\w+:)", listing, flags=re.MULTILINE)
    return {kernel_of(re.match(r"\w+", text)[0]): text for text in functions}


def blocks_at_once(registers: int, threads: int, shared_bytes: int) -> int:
    """How many blocks a multiprocessor holds; registers are given out by 256 to whole warps."""
    of_warp = -(-registers * 32 // 256) * 256
    return min(REGISTERS // (of_warp * -(-threads // 32)), SHARED_BYTES // (shared_bytes + RESERVED_BYTES))


def test_the_list_of_attention_tiles_fits_shared_memory():
    tiles = listed_tiles()
    for element in ELEMENT_BYTES:
        assert [tile.width for tile in tiles if tile.element == element] == [32, 64, 128, 256]
    for tile in tiles:
        rows = tile.stationary_rows + 4 * tile.streamed_rows  # queries; keys and values in two buffers each
        key_biases = 2 * tile.streamed_rows * 4
        assert rows * tile.width * ELEMENT_BYTES[tile.element] + key_biases <= MOST_SHARED_BYTES, tile


def test_every_listed_tile_is_compiled_and_no_other(compiled):
    listed = listed_instantiations(compiled.op)
    assert len(listed) <= MOST_INSTANTIATIONS
    assert compiled.ptx.keys() == compiled.ptxas_report.keys()
    variants = {kernel._replace(tile=None) for kernel in compiled.ptx if kernel.tile}
    assert bool(variants) == bool(listed)
    for variant in variants:
        tiles = [kernel.tile for kernel in compiled.ptx if kernel.tile and kernel._replace(tile=None) == variant]
        assert sorted(tiles) == sorted(listed), variant


def test_registers_do_not_spill(compiled):
    for name, report in compiled.ptxas_report.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, (name, report)


def test_kernels_use_tensor_cores_and_asynchronous_copies(compiled):
    for kernel, ptx in compiled.ptx.items():
        if not kernel.tile:
            continue
        element = kernel.tile[0]
        for instruction in (MULTIPLICATIONS[element], "cp.async.cg.shared.global"):
            assert instruction in ptx, (kernel, instruction)
        assert element == "float" or "ldmatrix.sync.aligned.m8n8.x4" in ptx, kernel
        if kernel.name == "token_gather_attention_forward":
            assert re.search(r"st\.global\.v4\.\w+", ptx), (kernel, "128-bit stores")


def test_a_multiprocessor_holds_a_block_of_every_kernel(compiled):
    for name, report in compiled.ptxas_report.items():
        registers = int(re.search(r"Used (\d+) registers", report)[1])
        threads = int(re.search(r"\.maxntid (\d+)", compiled.ptx[name])[1])
        assert blocks_at_once(registers, threads, MOST_SHARED_BYTES) >= 1, (name, registers, threads)


def test_blocks_at_once():
    assert blocks_at_once(registers=255, threads=128, shared_bytes=0) == 2
    assert blocks_at_once(registers=32, threads=128, shared_bytes=40_000) == 4
    assert blocks_at_once(registers=128, threads=1024, shared_bytes=0) == 0


def test_machine_code_has_tensor_cores_and_wide_copies_and_no_local_memory(compiled, machine_code):
    assert machine_code.keys() == compiled.ptx.keys()
    for kernel, code in machine_code.items():
        assert not re.search(r"\b(LDL|STL)\b", code), (kernel, "local memory")
        if not kernel.tile:
            continue
        element = kernel.tile[0]
        assert MACHINE_MULTIPLICATIONS[element] in code, kernel
        assert re.search(r"\bLDGSTS\.E\S*\.128\b", code), (kernel, "128-bit asynchronous copies")
        assert element == "float" or "LDSM.16." in code, kernel
        if kernel.name == "token_gather_attention_forward":
            assert "STG.E.128 " in code, (kernel, "128-bit stores")


def test_kernels_add_in_a_fixed_order(compiled):
    for name, ptx in compiled.ptx.items():
        assert not re.search(r"\b(atom|red)\.", ptx), name


@pytest.fixture
def cuda_build() -> str:
    version = json.loads(torch.ops.vleff.build_info())["cuda"]
    if not version:
        pytest.skip("the library was built without CUDA")
    return version


CUDA_OPS = [
    "token_gather_attention",
    "token_gather_attention_backward",
    "head_masked_project",
    "head_masked_reduce",
    "head_masked_grad_weight",
    "residual_layer_norm",
    "sum_rows",
    "trim_tokens",
    "trim_heads",
    "attention_distillation",
    "attention_distillation_backward",
    "masked_linear",
    "masked_linear_grad_values",
    "vocabulary_log_probs",
    "vocabulary_log_probs_backward",
    "copy_attention",
    "copy_attention_backward",
    "copy_attention_rows",
]


@pytest.mark.parametrize("op", CUDA_OPS)
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


def test_survivors_have_room_for_all_tokens_on_cuda():
    """How many stay is known on the device alone."""
    with FakeTensorMode():
        values = torch.empty(20, 8, device="cuda")
        parts = torch.empty(3, dtype=torch.int32, device="cuda")
        weights = [torch.empty(shape, device="cuda") for shape in ((4, 8), (4, 8), (4, 8), (4,), (1, 4), (1,))]
        survivors, kept_parts, pooled, logits = vleff.ops.trim_tokens(values, parts, *weights)
    assert (survivors.shape, kept_parts.shape, pooled.shape, logits.shape) == ((20,), (3,), (2, 8), (20,))
    assert {tensor.device.type for tensor in (survivors, kept_parts, pooled, logits)} == {"cuda"}
