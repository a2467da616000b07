"""The compiled CUDA kernels of head_masked_linear, run on the CPU, against the reference in float64."""

from typing import Any

import pytest
import torch
from cuda_kernels import KERNELS, MOST_SHARED_BYTES, listed_instantiations
from head_masked_cases import (
    DIRECTIONS,
    DTYPES,
    NOTHING,
    SHAPES,
    assert_within_twice_plain,
    gradients,
    in_dtype,
    kept_tokens,
    make_inputs,
    offsets_of,
)
from torch import Tensor

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .head_masked_linear import emulated_grad_weight, emulated_gradients, emulated_product
from .launching import EmulationError

pytestmark = pytest.mark.long

SOURCE = "head_masked_linear_kernel.cu"
both_directions = pytest.mark.parametrize("direction", DIRECTIONS)
# What is the same code for all element types is tried with all of them in the long tier only.
some_dtypes = pytest.mark.parametrize("dtype", DTYPES if is_full_run() else [torch.float16], ids=str)
# Shapes beyond those of the CPU's tests: several tiles in every direction, the last of them not full.
TILES: dict[str, dict[str, Any]] = {
    "more than a tile": {"lengths": [70, 1, 60], "heads": 2, "head_dim": 72, "width": 136},
    "one head of 130": {"lengths": [65], "heads": 1, "head_dim": 130, "width": 67},
}


ALL_CASES = [(name, dtype) for name in (*SHAPES, *TILES) for dtype in DTYPES]
CASES = [(name, dtype) for name, dtype in ALL_CASES if name == "more than a tile"]
CASES += [("one token", torch.float32), ("head size 33", torch.float16), ("empty samples", torch.bfloat16)]
CASES += [("head size 1", torch.float32), ("one head of 130", torch.bfloat16)]


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


@pytest.mark.parametrize("name, dtype", ALL_CASES if is_full_run() else CASES, ids=str)
@both_directions
def test_error_is_at_most_twice_plain_torch(
    build: EmulatedLibrary, direction: str, name: str, dtype: torch.dtype
) -> None:
    """Of the result and of all gradients."""
    reference = DIRECTIONS[direction][1]
    inputs = make_inputs(direction, **(SHAPES | TILES)[name], dtype=dtype)
    for mask in (inputs["head_mask"], None) if name in TILES else (inputs["head_mask"],):
        masked = inputs | {"head_mask": mask}
        out = emulated_product(build, direction, **masked)
        assert_within_twice_plain(out, reference(**masked), reference(**in_dtype(masked, torch.float64)))
        grad = torch.randn_like(out)
        plain = gradients(reference, masked, grad)
        exact = gradients(reference, in_dtype(masked, torch.float64), grad)
        for leaf, gradient in emulated_gradients(build, direction, masked, grad).items():
            assert_within_twice_plain(gradient, plain[leaf], exact[leaf], leaf)


def test_gradients_over_many_tokens(build: EmulatedLibrary) -> None:
    """Sums over thousands of tokens are made of shorter ones, as in plain torch."""
    inputs = make_inputs("project", [3000, 1, 2001], heads=2, head_dim=16, width=24)
    inputs["head_mask"] = torch.tensor([[True, True], [True, False], [True, False]])
    reference = DIRECTIONS["project"][1]
    grad = torch.randn_like(reference(**inputs))
    exact = gradients(reference, in_dtype(inputs, torch.float64), grad)
    plain = gradients(reference, inputs, grad)
    arguments = (inputs[name] for name in ("input", "offsets", "head_mask"))
    grad_weight, grad_bias = emulated_grad_weight(build, grad, *arguments, parts=3)
    assert_within_twice_plain(grad_weight, plain["weight"], exact["weight"])
    assert_within_twice_plain(grad_bias, plain["bias"], exact["bias"])


@some_dtypes
def test_dropped_blocks_are_zero_and_never_read(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    shape: dict[str, Any] = {"lengths": [40, 9, 60, 25], "heads": 3, "head_dim": 40, "dtype": dtype}
    inputs = make_inputs("project", **shape)
    dropped = ~kept_tokens(inputs)
    out = emulated_product(build, "project", **inputs).view(-1, 3, 3, 40).transpose(1, 2)
    assert (out[dropped] == 0).all() and (out[~dropped] != 0).any()

    def of_blocks(tensor: Tensor, value: float) -> Tensor:
        blocks = tensor.unflatten(1, (-1, 3, 40))
        return torch.where(dropped[:, None, :, None], torch.tensor(value, dtype=dtype), blocks).flatten(1)

    grad = torch.randn(len(out), 360).to(dtype)
    found = emulated_gradients(build, "project", inputs, of_blocks(grad, torch.nan))
    for name, expected in emulated_gradients(build, "project", inputs, of_blocks(grad, 0)).items():
        assert torch.equal(found[name], expected)

    inputs = make_inputs("reduce", **shape)
    poison = inputs | {"input": of_blocks(inputs["input"], torch.nan)}
    out = emulated_product(build, "reduce", **poison)
    assert torch.equal(out, emulated_product(build, "reduce", **inputs))
    none_kept = slice(49, 109)  # the third sample
    assert torch.equal(out[none_kept], (inputs["bias"].float() + inputs["residual"][none_kept].float()).to(dtype))


@some_dtypes
@both_directions
def test_infinite_weights_of_a_dropped_head_do_not_reach_others(
    build: EmulatedLibrary, direction: str, dtype: torch.dtype
) -> None:
    """Tokens that keep a head and tokens that drop it stand in one tile."""
    inputs = make_inputs(direction, [9, 20], heads=2, head_dim=16, dtype=dtype)
    inputs["head_mask"] = torch.tensor([[True, True], [True, False]])
    wrong = inputs["weight"].clone()
    blocks = wrong.unflatten(0, (3, 2, 16))[:, 1] if direction == "project" else wrong.unflatten(1, (2, 16))[:, 1]
    blocks.fill_(torch.inf)
    out = emulated_product(build, direction, **inputs | {"weight": wrong})
    assert torch.equal(out[9:], emulated_product(build, direction, **inputs)[9:])


@some_dtypes
@both_directions
def test_a_sample_has_the_same_bits_alone(build: EmulatedLibrary, direction: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(direction, [17, 70, 5, 33], 3, 33, 90, dtype)
    together = emulated_product(build, direction, **inputs)
    for sample in range(4):
        rows = slice(*inputs["offsets"][sample : sample + 2].tolist())
        alone = {name: inputs[name][rows] for name in ("input", "residual") if name in inputs}
        alone |= {"offsets": offsets_of([rows.stop - rows.start])}
        alone |= {"head_mask": inputs["head_mask"][sample : sample + 1]}
        assert torch.equal(emulated_product(build, direction, **inputs | alone), together[rows])


@some_dtypes
@both_directions
def test_layouts_of_the_weight_change_no_bit(build: EmulatedLibrary, direction: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(direction, [20, 3], heads=3, head_dim=40, width=90, dtype=dtype)
    weight = inputs["weight"]
    expected = emulated_product(build, direction, **inputs)
    for view in (weight.T.contiguous().T, torch.cat([weight, weight], 1)[:, 3:][:, : weight.shape[1]]):
        view = view if view.stride(0) == 1 else torch.nn.functional.pad(weight, (3, 2))[:, 3:-2]
        assert torch.equal(emulated_product(build, direction, **inputs | {"weight": view}), expected)


@some_dtypes
def test_gathered_rows(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs = make_inputs("project", [20, 3, 9, 11], heads=3, head_dim=40, dtype=dtype)
    for index in (torch.randint(43, (80,)), torch.randperm(43, dtype=torch.int32)[:19]):
        lengths = [len(index) - len(index) // 2, 0, len(index) // 2, 0]
        gathered = inputs | {"offsets": offsets_of(lengths), "input": inputs["input"][index]}
        by_index = gathered | {"input": inputs["input"], "index": index}
        expected = emulated_product(build, "project", **gathered)
        assert torch.equal(emulated_product(build, "project", **by_index), expected)
        grad = torch.randn(expected.shape).to(dtype)
        found = emulated_gradients(build, "project", by_index, grad)
        for name, gradient in emulated_gradients(build, "project", gathered, grad).items():
            assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("name", NOTHING)
@both_directions
def test_no_tokens(build: EmulatedLibrary, direction: str, name: str) -> None:
    inputs = make_inputs(direction, NOTHING[name])
    out = emulated_product(build, direction, **inputs)
    assert out.shape[0] == 0
    for gradient in emulated_gradients(build, direction, inputs, out).values():
        assert (gradient == 0).all()


@both_directions
def test_tokens_of_no_sample_keep_no_head(build: EmulatedLibrary, direction: str) -> None:
    inputs = make_inputs(direction, [70, 30])
    for mask in (torch.ones_like(inputs["head_mask"]), None):
        out = emulated_product(build, direction, **inputs | {"offsets": offsets_of([9, 4]), "head_mask": mask})
        expected = inputs["bias"] + inputs["residual"] if direction == "reduce" else torch.zeros_like(out)
        assert torch.equal(out[13:], expected[13:])


@pytest.mark.parametrize(
    "wrong",
    [
        {"offsets": torch.tensor([-5, 50, 10, 2**31 - 1, 20], dtype=torch.int32)},
        {"offsets": torch.tensor([0, -(2**31), 1000, 3, -1], dtype=torch.int32)},
        {"index": torch.tensor([-1, 2**62, -(2**63), 43] + 39 * [42])},
    ],
    ids=["offsets that jump", "offsets that descend", "index"],
)
def test_wrong_offsets_and_row_numbers_touch_no_foreign_memory(build: EmulatedLibrary, wrong: dict) -> None:
    inputs = make_inputs("project", [20, 3, 9, 11]) | wrong
    out = emulated_product(build, "project", **inputs)
    emulated_gradients(build, "project", inputs, out)
    if "index" not in wrong:
        emulated_product(build, "reduce", **make_inputs("reduce", [20, 3, 9, 11]) | wrong)


@pytest.mark.parametrize("tile", listed_instantiations("head_masked_linear"), ids=str)
def test_kernels_are_refused_where_shared_memory_is_too_small(build: EmulatedLibrary, tile: tuple) -> None:
    element, rows, columns, depth = tile
    dtype = {"float": torch.float32, "__nv_bfloat16": torch.bfloat16, "__half": torch.float16}[element]
    needed = 2 * (rows + columns) * depth * dtype.itemsize
    assert needed <= MOST_SHARED_BYTES
    inputs = make_inputs("reduce", [3], dtype=dtype)
    emulated_product(build, "reduce", **inputs, shared_limit=needed)
    with pytest.raises(EmulationError, match="CUDA error 1"):
        emulated_product(build, "reduce", **inputs, shared_limit=needed - 1)


LINEAR, GRADIENT, PRODUCTS = "head_masked_linear.cuh", "head_masked_grad_weight.cuh", "product_tiles.cuh"
CHANGES = [
    Change("drop the barrier", PRODUCTS, "__syncthreads();  // the tiles are in", ";  // the tiles are in"),
    Change("drop the wait", PRODUCTS, "    wait_for_copies();\n", ""),
    Change("drop the last barrier", PRODUCTS, "  __syncthreads();  // every warp has left the tiles\n", ""),
    Change("use one buffer", PRODUCTS, "depth.present; buffer ^= 1", "depth.present;"),
    Change("unswizzle", PRODUCTS, ": line % 8", ": 0"),
    Change("store before all have staged", PRODUCTS, "  __syncthreads();  // all sums are staged\n", ""),
    Change("load past the last column", PRODUCTS, "max(0, min(source.count,", "max(0, max(source.count,"),
    Change("store past the last token", LINEAR, "tokens || column >= columns) return;  // project", "tokens) {}"),
    Change("swap the words by depth", PRODUCTS, "row / 8 + lane.number / 8 % 2", "row / 8 + lane.number / 16"),
    Change("forget the bias of later tokens", GRADIENT, "bias += sum", "bias = sum"),
    Change("sum tokens that drop the head", GRADIENT, "if (!depth.kept.has(token) || row >= rows)", "if (row >= rows)"),
]  # fmt: skip


def is_found(build: EmulatedLibrary, dtype: torch.dtype) -> bool:
    shape: dict[str, Any] = {"lengths": [40, 9, 60, 25], "heads": 3, "head_dim": 68, "width": 150, "dtype": dtype}
    try:
        for direction, (_, reference) in DIRECTIONS.items():
            inputs = make_inputs(direction, **shape)
            exact = reference(**in_dtype(inputs, torch.float64))
            out = emulated_product(build, direction, **inputs)
            assert_within_twice_plain(out, reference(**inputs), exact)
            grad = torch.randn_like(out)
            found = emulated_gradients(build, direction, inputs, grad)
            plain = gradients(reference, inputs, grad)
            for leaf, exact in gradients(reference, in_dtype(inputs, torch.float64), grad).items():
                if leaf in found:
                    assert_within_twice_plain(found[leaf], plain[leaf], exact)
    except (EmulationError, AssertionError):
        return True
    return False


def changed(change: Change | None, element: str) -> EmulatedLibrary:
    tile = next(tile for tile in listed_instantiations("head_masked_linear") if tile[0] == element)
    only = {"head_masked_linear_tiles.inc": f"VLEFF_TILE({', '.join(map(str, tile))})\n"}
    return build_changed(SOURCE, only, change)


@pytest.mark.parametrize("element, dtype", [("__half", torch.float16), ("float", torch.float32)])
def test_kernels_without_mistakes_pass(element: str, dtype: torch.dtype) -> None:
    assert not is_found(changed(None, element), dtype)


@pytest.mark.parametrize("change", CHANGES if is_full_run() else CHANGES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    assert is_found(changed(change, "__half"), torch.float16)
