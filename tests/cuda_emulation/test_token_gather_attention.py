"""The compiled CUDA kernels of token_gather_attention, run on the CPU, against the reference in float64."""

import pytest
import torch
from attention_cases import (
    DTYPES,
    FEATURE_LENGTHS,
    FEATURES,
    NOTHING,
    SHAPES,
    Inputs,
    assert_same_bits,
    assert_within_twice_plain,
    error,
    exact,
    make_inputs,
    offsets_of,
    rounding,
    sdpa,
)
from cuda_kernels import KERNELS, MOST_SHARED_BYTES, Tile, listed_tiles
from torch import Tensor

from vleff.ops import token_gather_attention_reference

from .attention import Result, emulated_attention
from .building import EmulatedLibrary, build_kernels, is_full_run
from .launching import DTYPE_OF, EmulationError

pytestmark = pytest.mark.long

ODD_HEAD_SIZES = {32: 7, 64: 50, 128: 80, 256: 131}  # that are padded to a tile's width
TILES = listed_tiles()


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / "token_gather_attention_kernel.cu", request.param)


def emulated(build: EmulatedLibrary, **inputs: object) -> Result:
    """The result that every schedule must have to the bit, without bank conflicts of matrix loads."""
    results, statistics = emulated_attention(build, **inputs)
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_same_bits(actual, expected)
    for counts in statistics:
        assert counts["matrix_load_passes"] == counts["matrix_load_passes_ideal"]
    return results[0]


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def assert_matches(actual: Result, inputs: Inputs) -> None:
    """The bounds of the CPU op's tests: logits reach hundreds, and their rounding is what all results inherit."""
    out, lse, importance = actual
    exact_out, exact_lse, exact_importance = exact(inputs | {"importance": True})
    logits = rounding(exact_lse, torch.float32)
    assert error(out, exact_out) <= 8 * rounding(exact_out, out.dtype) + 4 * logits * largest(inputs["v"])
    assert error(lse, exact_lse) <= 8 * logits
    assert error(importance, exact_importance) <= 8 * logits * max(1, largest(exact_importance))


@pytest.mark.parametrize("odd", [False, True], ids=["full width", "odd head size"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_error_is_at_most_twice_plain_torch(build: EmulatedLibrary, tile: Tile, odd: bool) -> None:
    """Several tiles of queries and of keys, the last of them not full."""
    lengths = [tile.stationary_rows + 5, 1, 3], [2 * tile.streamed_rows + 3, tile.streamed_rows, 5]
    dtype = DTYPE_OF[tile.element]
    inputs = make_inputs(*lengths, head_dim=ODD_HEAD_SIZES[tile.width] if odd else tile.width, dtype=dtype)
    out, lse, importance = emulated(build, **inputs)
    exact_out, exact_lse, exact_importance = exact(inputs | {"importance": True})
    formula = token_gather_attention_reference(**inputs, importance=True)
    plain = [[sdpa(**inputs)]] + ([[formula[0]]] if dtype == torch.float32 else [])
    assert_within_twice_plain([out], [exact_out], *plain, dtype=dtype)
    assert_within_twice_plain([lse], [exact_lse], [formula[1]], dtype=torch.float32)
    assert_within_twice_plain([importance], [exact_importance], [formula[2]], dtype=torch.float32)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_option_at_once(build: EmulatedLibrary, tile: Tile) -> None:
    inputs = make_inputs(*FEATURE_LENGTHS, head_dim=tile.width, dtype=DTYPE_OF[tile.element])
    inputs |= FEATURES["everything"]()
    assert_matches(emulated(build, **inputs), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_features_match_the_reference(build: EmulatedLibrary, feature: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(*FEATURE_LENGTHS, head_dim=40, dtype=dtype, **FEATURES[feature]())
    assert_matches(emulated(build, **inputs), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*SHAPES, *NOTHING])
def test_shapes_match_the_reference(build: EmulatedLibrary, name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(**(SHAPES | NOTHING)[name], dtype=dtype)
    assert_matches(emulated(build, **inputs), inputs)


def test_rows_of_no_sample_are_empty(build: EmulatedLibrary) -> None:
    inputs = make_inputs([70, 30], [80, 40], head_dim=24)
    ragged = inputs | {"q_offsets": offsets_of([9, 4]), "k_offsets": offsets_of([20, 11])}
    out, lse, importance = emulated(build, **ragged)
    assert (out[13:] == 0).all() and (lse[13:] == -torch.inf).all() and (importance[31:] == 0).all()
    cut = {"q": inputs["q"][:13], **{name: inputs[name][:31] for name in "kv"}}
    for actual, expected in zip((out[:13], lse[:13], importance[:31]), emulated(build, **ragged | cut), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_change_no_bit(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    """Views of a fused projection, heads outermost, rows that start at no multiple of 16 bytes, one row for all."""
    inputs = make_inputs([13, 7], head_dim=40, dtype=dtype)
    expected = emulated(build, **inputs)
    fused = torch.stack([inputs[name] for name in "qkv"], 1)
    unaligned = torch.nn.functional.pad(torch.stack([inputs[name] for name in "qkv"]), (1, 2))[..., 1:-2]
    by_head = [inputs[name].transpose(0, 1).contiguous().transpose(0, 1) for name in "qkv"]
    for q, k, v in (fused.unbind(1), unaligned, by_head):
        for actual, plain in zip(emulated(build, **inputs | {"q": q, "k": k, "v": v}), expected, strict=True):
            assert_same_bits(actual, plain)
    expanded = {"k": inputs["k"][:, :1].expand(-1, 2, -1), "v": inputs["v"][:1].expand(20, -1, -1)}
    copied = {name: tensor.contiguous() for name, tensor in expanded.items()}
    for actual, plain in zip(emulated(build, **inputs | expanded), emulated(build, **inputs | copied), strict=True):
        assert_same_bits(actual, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_has_the_same_bits_alone(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs = make_inputs([17, 70, 5], [40, 90, 3], head_dim=64, dtype=dtype, causal=True)
    out, lse, importance = emulated(build, **inputs)
    queries, keys = slice(17, 87), slice(40, 130)
    alone = make_inputs([70], [90], head_dim=64, dtype=dtype, causal=True)
    alone |= {"q": inputs["q"][queries], "k": inputs["k"][keys], "v": inputs["v"][keys]}
    for actual, expected in zip(emulated(build, **alone), (out[queries], lse[queries], importance[keys]), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"q_offsets": torch.tensor([0, 50, 10, 2**31 - 1, 20], dtype=torch.int32)},
        {"k_offsets": torch.tensor([-(2**31), -5, 1000, 3, -1], dtype=torch.int32)},
        {"q_index": torch.tensor([-1, 2**62, -(2**63), 50] + 46 * [49])},
        {"k_index": torch.tensor([-1, 2**31 - 1, -(2**31), 66] + 62 * [65], dtype=torch.int32)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_offsets_and_row_numbers_touch_no_foreign_memory(
    build: EmulatedLibrary, wrong: dict[str, Tensor]
) -> None:
    inputs = make_inputs(*FEATURE_LENGTHS, head_dim=40, key_bias=torch.randn(66))
    results, _ = emulated_attention(build, **inputs | wrong)
    assert len(results) > 1


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_kernels_are_refused_where_shared_memory_is_too_small(build: EmulatedLibrary, tile: Tile) -> None:
    element_bytes = DTYPE_OF[tile.element].itemsize
    rows = tile.stationary_rows + 4 * tile.streamed_rows
    needed = rows * tile.width * element_bytes + 2 * tile.streamed_rows * 4
    assert needed <= MOST_SHARED_BYTES
    inputs = make_inputs([3], head_dim=tile.width, dtype=DTYPE_OF[tile.element])
    emulated_attention(build, **inputs, shared_limit=needed)
    with pytest.raises(EmulationError, match="CUDA error 1"):
        emulated_attention(build, **inputs, shared_limit=needed - 1)
