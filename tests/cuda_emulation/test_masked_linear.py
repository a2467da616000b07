"""The compiled CUDA kernels of masked_linear, run on the CPU, against the reference in float64."""

from typing import Any

import pytest
import torch
from attention_cases import DTYPES, assert_same_bits, error, rounding
from cuda_kernels import KERNELS, Tile, listed_tiles
from masked_linear_cases import make_inputs
from torch import Tensor

from vleff.ops import MaskedStructure, masked_linear_reference

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import DTYPE_OF, SHOWN, Field, data_type, int32, int64, launch_alike, pointer, struct

pytestmark = pytest.mark.long

SOURCE = "masked_linear_kernel.cu"
TILES = listed_tiles("masked_linear")
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu"]  # in the order of vleff::Activation


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


def matrix(structure: MaskedStructure) -> Field:
    """vleff::cuda::SparseMatrix"""
    sizes = (structure.rows, structure.columns, structure.row_chunk, structure.column_block)
    arrays = map(pointer, ("starts", "order", "block_columns"))
    return struct(struct(*map(int64, sizes), *arrays), int64(structure.elements))


def arrays_of(structure: MaskedStructure) -> dict[str, Tensor]:
    return {name: getattr(structure, name) for name in ("starts", "order", "block_columns")}


def emulated(
    build: EmulatedLibrary,
    input: Tensor,
    values: Tensor,
    structure: MaskedStructure,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    **options: Any,
) -> Tensor:
    """Arguments as of `vleff.ops.masked_linear`."""
    optional = {name: x for name, x in (("bias", bias), ("residual", residual)) if x is not None}
    arguments = [pointer(name if name in optional else None) for name in ("bias", "residual")]
    problem = [data_type(input.dtype), int64(input.shape[0]), matrix(structure), pointer("values"), pointer("input")]
    problem += [*arguments, int32(ACTIVATIONS.index(activation)), pointer("out")]
    tensors = {"input": input, "values": values, **arrays_of(structure), **optional}
    results = {"out": ((input.shape[0], structure.rows), input.dtype)}
    return launch_alike(build, "vleff_masked_linear_cuda", problem, tensors, results, **options)["out"]


def emulated_grad_values(
    build: EmulatedLibrary, grad_out: Tensor, input: Tensor, structure: MaskedStructure, **options: Any
) -> Tensor:
    problem = [data_type(input.dtype), int64(input.shape[0]), matrix(structure)]
    problem += map(pointer, ("grad_out", "input", "grad_values"))
    tensors = {"grad_out": grad_out, "input": input, **arrays_of(structure)}
    results = {"grad_values": ((structure.elements,), torch.float32)}
    name = "vleff_masked_linear_grad_values_cuda"
    return launch_alike(build, name, problem, tensors, results, **options)["grad_values"]


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, Tensor) else x for name, x in inputs.items()}


def assert_within_twice_plain(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """A float32 product has an error near 2 ** -22, of a largest number that sums may cancel."""
    bound = 2 * error(plain, exact) + rounding(exact, plain.dtype)
    assert error(actual, exact) <= bound, f"error {error(actual, exact):.3g}, bound {bound:.3g}"


def assert_output(build: EmulatedLibrary, inputs: dict[str, Any]) -> None:
    out = emulated(build, **inputs)
    assert_within_twice_plain(out, masked_linear_reference(**inputs), masked_linear_reference(**in_float64(inputs)))


def assert_gradients(build: EmulatedLibrary, inputs: dict[str, Any]) -> None:
    """Of the input, by the transposed structure, and of the values."""
    structure, input = inputs["structure"], inputs["input"]
    grad = torch.randn(input.shape[0], structure.rows).to(input.dtype)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaves = [inputs[name].to(dtype, copy=True).requires_grad_() for name in ("input", "values")]
        masked_linear_reference(*leaves, structure).backward(grad.to(dtype))
        return leaves[0].grad, leaves[1].grad

    other, elements = structure.transposed()
    of_input = emulated(build, grad, inputs["values"][elements.long()], other)
    of_values = emulated_grad_values(build, grad, input, structure)
    plain, exact = gradients(input.dtype), gradients(torch.float64)
    assert_within_twice_plain(of_input, plain[0], exact[0])
    assert_within_twice_plain(of_values, plain[1], exact[1])


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_error_is_at_most_twice_plain_torch(build: EmulatedLibrary, tile: Tile) -> None:
    """Several tiles of tokens, parts of a chunk, chunks and blocks, none of them full at the end."""
    rows, columns = tile.streamed_rows + 41, 2 * tile.width + 7
    inputs = make_inputs(rows, columns, 0.3, tile.stationary_rows + 5, DTYPE_OF[tile.element], (64, tile.width))
    assert_output(build, inputs)
    assert_gradients(build, inputs)


@pytest.mark.parametrize("number", range(7))
def test_shapes(build: EmulatedLibrary, number: int) -> None:
    """One element, none, rows without any, blocks and chunks of any size, tokens without padding."""
    shapes = [
        (1, 1, 1.0, 1, None),
        (3, 5, 0.5, 2, None),
        (65, 130, 0.0, 17, None),
        (65, 40, 0.02, 16, (256, 256)),
        (30, 70, 0.3, 33, (7, 13)),
        (9, 20, 0.7, 5, (1, 1)),
        (130, 48, 0.3, 9, (128, 24)),
    ]
    *sizes, blocks = shapes[number]
    for dtype in DTYPES if is_full_run() else [DTYPES[number % 3]]:
        inputs = make_inputs(*sizes, dtype, blocks)
        assert_output(build, inputs)
        assert_gradients(build, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations(build: EmulatedLibrary, activation: str) -> None:
    inputs = make_inputs(20, 30, 0.3, 18) | {"activation": activation}
    assert_output(build, inputs)
    inputs["input"][0] = float("nan")
    inputs |= {"bias": None, "residual": None}
    assert emulated(build, **inputs)[0].isnan().all()


def test_without_tokens_gradients_are_zero(build: EmulatedLibrary) -> None:
    inputs = make_inputs(20, 30, 0.3, 0)
    assert emulated(build, **inputs).shape == (0, 20)
    grad_values = emulated_grad_values(build, torch.zeros(0, 20), inputs["input"], inputs["structure"])
    assert (grad_values == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_does_not_depend_on_the_others(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs = make_inputs(70, 150, 0.3, 70, dtype)
    together = emulated(build, **inputs)
    for count in (1, 17):
        some = inputs | {name: inputs[name][-count:].clone() for name in ("input", "residual")}
        assert_same_bits(emulated(build, **some), together[-count:])


@pytest.mark.parametrize("wrong", ["starts", "order", "block_columns"])
def test_wrong_structures_touch_no_foreign_memory(build: EmulatedLibrary, wrong: str) -> None:
    inputs = make_inputs(65, 130, 0.3, 9)
    structure = inputs["structure"]
    arrays = arrays_of(structure)
    if wrong == "starts":
        arrays["starts"] = torch.linspace(2.0**31 - 200, -(2.0**31), len(structure.starts)).int()
    else:
        arrays[wrong] = torch.full_like(arrays[wrong], 255)
    other = MaskedStructure(65, 130, structure.row_chunk, structure.column_block, **arrays)
    grad = torch.randn(9, 65)
    assert emulated(build, **inputs | {"structure": other}).shape == (9, 65)
    assert emulated_grad_values(build, grad, inputs["input"], other, alike=False).shape == (structure.elements,)


FORWARD, GRADIENT, SPARSE = "masked_linear.cuh", "masked_linear_gradient.cuh", "sparse_tiles.cuh"
FRAGMENTS = "fragments.cuh"
BARRIER = "__syncthreads();  // the tiles are in, and every warp has left the other buffers"
MISTAKES = [
    Change("drop the barrier between zeros and elements", SPARSE, "__syncwarp();  // the zeros", "// the zeros"),
    Change("drop the barrier", FORWARD, BARRIER, ""),
    Change("drop the barrier of the gradient", GRADIENT, BARRIER, ""),
    Change("store the sums too early", GRADIENT, "__syncthreads();  // every warp has left the tiles", "// all left"),
    Change("read the sums too early", GRADIENT, "__syncthreads();  // the sums are in", ""),
    Change("forget the zeros", SPARSE, "= uint4{};", "= uint4{0x3C003C00u, 0, 0, 0};"),
    Change("forget the part", SPARSE, "structure.order[places + own] - part.first", "structure.order[places + own]"),
    Change("skip a lane's rows", SPARSE, "start + lane.number * warps", "start + lane.number"),
    Change("expand into the buffer in use", FORWARD, "expand(block + 1, buffer ^ 1);", "expand(block + 1, buffer);"),
    Change("store past the last token", FORWARD, "token < problem.tokens ?", "true ?"),
    Change(
        "sum tokens in another order",
        FRAGMENTS,
        "const int row = 8 * j + 2 * lane.thread",
        "const int row = 8 * j + lane.thread",
    ),
]


def check(change: Change | None) -> None:
    """A test of several tiles, cut at their edges,, on kernels with the change."""
    library = build_changed(SOURCE, {"masked_linear_tiles.inc": "VLEFF_TILE(__half, 128, 64, 64)\n"}, change)
    inputs = make_inputs(140, 270, 0.3, 69, torch.float16, (128, 128))
    assert_output(library, inputs)
    assert_gradients(library, inputs)


def test_kernels_without_mistakes_pass() -> None:
    check(None)


@pytest.mark.parametrize("change", MISTAKES if is_full_run() else MISTAKES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    with pytest.raises(SHOWN):
        check(change)
