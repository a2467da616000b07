"""The compiled CUDA kernels of token_gather_attention's backward pass, run on the CPU, against float64."""

import pytest
import torch
from attention_cases import (
    DTYPES,
    FEATURE_LENGTHS,
    FEATURES,
    NOTHING,
    Inputs,
    assert_within_twice_plain,
    gradients,
    in_dtype,
    make_inputs,
    offsets_of,
    rounding,
    sdpa,
)
from cuda_kernels import ELEMENT_BYTES, KERNELS, MOST_SHARED_BYTES, Tile, listed_tiles
from torch import Tensor

from vleff.ops import token_gather_attention, token_gather_attention_reference

from .attention import attention_problem, emulated_attention, tensors_of, totals
from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import DTYPE_OF, SHOWN, EmulationError, boolean, launch_alike, pointer, storage_of

pytestmark = pytest.mark.long

SOURCE, OP = "token_gather_attention_backward_kernel.cu", "token_gather_attention_backward"
ODD_HEAD_SIZES = {32: 7, 64: 50, 128: 80, 256: 131}  # that are padded to a tile's width
TILES = listed_tiles(OP)


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


@pytest.fixture(scope="module")
def forward_build() -> EmulatedLibrary:
    return build_kernels(KERNELS / "token_gather_attention_kernel.cu", "compute_80")


def emulated(
    build: EmulatedLibrary,
    inputs: Inputs,
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
    forward: tuple[Tensor, Tensor] | None = None,
    shared_limit: int = MOST_SHARED_BYTES,
) -> dict[str, Tensor]:
    """Gradients by name; those of gathered rows are float32 and not summed.

    Args:
        forward: out and lse; those of the CPU's op if None.
    """
    out, lse = token_gather_attention(**inputs)[:2] if forward is None else forward
    tensors = tensors_of(inputs) | {"out": out, "lse": lse, "grad_out": grad_out}
    if grad_lse is not None:
        tensors["grad_lse"] = grad_lse
    (heads, head_dim), dtype, (total_q, total_k) = inputs["q"].shape[1:], inputs["q"].dtype, totals(inputs)
    float_q, float_k = (name in tensors or dtype == torch.float32 for name in ("q_index", "k_index"))
    types = [torch.float32 if is_float else dtype for is_float in (float_q, float_k)]
    results = {
        "q": ((total_q, heads, head_dim), types[0]),
        "k": ((total_k, heads, head_dim), types[1]),
        "v": ((total_k, heads, head_dim), types[1]),
        "key_bias": ((total_k,), torch.float32),
        "delta": ((total_q, heads), torch.float32),
        "head_key_biases": ((heads, total_k), torch.float32),
    }
    problem = [attention_problem(inputs, {"out": "out", "lse": "lse"}), pointer("grad_out")]
    problem += [pointer("grad_lse" if "grad_lse" in tensors else None), boolean(float_q), boolean(float_k)]
    problem += [pointer(f"grad_{name}") for name in results]
    made = {f"grad_{name}": result for name, result in results.items()}
    found = launch_alike(build, f"vleff_{OP}_cuda", problem, tensors, made, shared_limit=shared_limit)
    wanted = ("q", "k", "v", *(["key_bias"] if "key_bias" in tensors else []))
    return {name: found[f"grad_{name}"] for name in wanted}


def of_batch_rows(inputs: Inputs) -> Inputs:
    """The same with rows gathered before: their gradients are what the kernels make of gathered rows."""
    plain = {name: value for name, value in inputs.items() if name not in ("q_index", "k_index")}
    for name, index in (("q", "q_index"), ("k", "k_index"), ("v", "k_index")):
        if inputs.get(index) is not None:
            plain[name] = inputs[name][inputs[index]]
    return plain


def exact_gradients(inputs: Inputs, grad_out: Tensor, grad_lse: Tensor | None = None) -> dict[str, Tensor]:
    double = in_dtype(of_batch_rows(inputs), torch.float64)
    return gradients(token_gather_attention_reference, double, grad_out, grad_lse)


@pytest.mark.parametrize("odd", [False, True] if is_full_run() else [True], ids=lambda odd: "odd" if odd else "full")
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_error_is_at_most_twice_plain_torch(
    build: EmulatedLibrary, forward_build: EmulatedLibrary, tile: Tile, odd: bool
) -> None:
    """Several tiles of queries and of keys, the last of them not full; after the CUDA forward pass, as on a GPU.

    Both passes round the logits alike, so that the rounding of lse, which is large with logits, falls out of P.
    """
    lengths = [tile.stationary_rows + 5, 1, 3], [tile.stationary_rows + tile.streamed_rows + 3, 2, 5]
    dtype = DTYPE_OF[tile.element]
    inputs = make_inputs(*lengths, head_dim=ODD_HEAD_SIZES[tile.width] if odd else tile.width, dtype=dtype)
    grad_out = torch.randn_like(inputs["q"])
    forward = emulated_attention(forward_build, **inputs)[0][0][:2]
    actual, exact = emulated(build, inputs, grad_out, forward=forward), exact_gradients(inputs, grad_out)
    plain = [gradients(sdpa, inputs, grad_out)]
    if dtype == torch.float32:  # torch's two ways differ much from case to case here
        plain.append(gradients(token_gather_attention_reference, inputs, grad_out))
    for name in "qkv":
        assert_within_twice_plain([actual[name]], [exact[name]], *[[p[name]] for p in plain], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES if is_full_run() else DTYPES[:2], ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_gradients_through_out_and_lse_match_the_reference(
    build: EmulatedLibrary, feature: str, dtype: torch.dtype
) -> None:
    inputs = make_inputs(*FEATURE_LENGTHS, head_dim=40, dtype=dtype, **FEATURES[feature]())
    for operand in "qkv":  # without outliers: errors are measured against the largest gradient
        inputs[operand] = torch.randn(inputs[operand].shape).to(dtype)
    assert_gradients_match(build, inputs)


def assert_gradients_match(build: EmulatedLibrary, inputs: Inputs) -> None:
    """Products of float32 have four times the rounding error of one multiplication."""
    dtype = inputs["q"].dtype
    roundings = 64 if dtype == torch.float32 else 16
    batch = of_batch_rows(inputs)
    grad_out, grad_lse = torch.randn(batch["q"].shape).to(dtype), torch.randn(batch["q"].shape[:2])
    actual, exact = emulated(build, inputs, grad_out, grad_lse), exact_gradients(inputs, grad_out, grad_lse)
    assert actual.keys() == exact.keys()
    for name, gradient in actual.items():
        difference = (gradient.double() - exact[name]).abs()
        assert gradient.isfinite().all() and (difference <= roundings * rounding(exact[name], dtype)).all(), name


@pytest.mark.parametrize("name", NOTHING)
def test_empty_samples_have_zero_gradients(build: EmulatedLibrary, name: str) -> None:
    inputs = make_inputs(**NOTHING[name])
    inputs["key_bias"] = torch.randn(len(inputs["k"]))
    for gradient in emulated(build, inputs, torch.randn(inputs["q"].shape)).values():
        assert (gradient == 0).all()


def test_dropped_heads_are_never_read(build: EmulatedLibrary) -> None:
    inputs = make_inputs([9, 70], head_dim=24, head_mask=torch.tensor([[True, False], [False, True]]))
    grad_out = torch.randn(inputs["q"].shape)
    expected = emulated(build, inputs, grad_out)
    dropped = ~inputs["head_mask"].repeat_interleave(torch.tensor([9, 70]), 0)
    grad_out[dropped] = torch.nan
    for name, gradient in emulated(build, inputs, grad_out).items():
        assert torch.equal(gradient, expected[name]) and (gradient[dropped] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES if is_full_run() else DTYPES[2:], ids=str)
def test_a_sample_has_the_same_bits_alone(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs = make_inputs([17, 70, 5], [40, 90, 3], head_dim=64, dtype=dtype, causal=True)
    grad_out = torch.randn_like(inputs["q"])
    together = emulated(build, inputs, grad_out)
    queries, keys = slice(17, 87), slice(40, 130)
    alone = make_inputs([70], [90], head_dim=64, dtype=dtype, causal=True)
    alone |= {"q": inputs["q"][queries], "k": inputs["k"][keys], "v": inputs["v"][keys]}
    found = emulated(build, alone, grad_out[queries].clone())
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        assert torch.equal(found[name], together[name][rows])


@pytest.mark.parametrize("tile", [tile for tile in TILES if tile.element != "__half"], ids=str)
def test_kernels_are_refused_where_shared_memory_is_too_small(build: EmulatedLibrary, tile: Tile) -> None:
    rows = 2 * tile.stationary_rows + 4 * tile.streamed_rows
    needed = rows * tile.width * ELEMENT_BYTES[tile.element] + 2 * tile.streamed_rows * 16
    assert needed <= MOST_SHARED_BYTES
    inputs = make_inputs([3], head_dim=tile.width, dtype=DTYPE_OF[tile.element])
    with pytest.raises(EmulationError, match="CUDA error 1"):
        emulated(build, inputs, torch.zeros_like(inputs["q"]), shared_limit=needed - 1)


def test_only_what_an_operand_holds_is_read(build: EmulatedLibrary) -> None:
    """Views of a fused projection, whose last row ends where its memory ends."""
    inputs = make_inputs([13, 7], head_dim=40)
    grad_out = torch.randn_like(inputs["q"])
    expected = emulated(build, inputs, grad_out)
    q, k, v = torch.stack([inputs[name] for name in "qkv"], 1).unbind(1)
    assert len(storage_of(q)) < len(storage_of(v))
    for name, gradient in emulated(build, inputs | {"q": q, "k": k, "v": v}, grad_out).items():
        assert torch.equal(gradient, expected[name])


def test_rows_of_no_sample_have_zero_gradients(build: EmulatedLibrary) -> None:
    inputs = make_inputs([70, 30], [80, 40], head_dim=24)
    grad_out = torch.randn_like(inputs["q"])
    cut = {"q": inputs["q"][:13], **{name: inputs[name][:31] for name in "kv"}}
    ragged = {"q_offsets": offsets_of([9, 4]), "k_offsets": offsets_of([20, 11])}
    expected = emulated(build, inputs | ragged | cut, grad_out[:13].clone())
    out, lse, _ = token_gather_attention(**inputs | ragged | cut)
    out, lse = (torch.cat([x, torch.full((87, *x.shape[1:]), fill)]) for x, fill in ((out, 0.0), (lse, -torch.inf)))
    found = emulated(build, inputs | ragged, grad_out, forward=(out, lse))
    for name, rows in (("q", 13), ("k", 31), ("v", 31)):
        assert torch.equal(found[name][:rows], expected[name]) and (found[name][rows:] == 0).all()


BACKWARD = "token_gather_attention_backward.cuh"
BARRIER = "    __syncthreads();  // the tile is in, and every warp has left the other buffer\n"
QUERIES, KEYS = "    if (first_key + Tile::streamed_rows < visible)", "    if (first_query + Tile::streamed_rows"
CHANGES = [
    Change("drop the barrier of queries", BACKWARD, BARRIER + QUERIES, QUERIES),
    Change("drop the barrier of keys", BACKWARD, BARRIER + KEYS, KEYS),
    Change("forget the gradient of lse", BACKWARD, "gradient.grad_lse[row] : 0.0f", "0.0f : 0.0f"),
    Change("see one key too many", BACKWARD, "column >= limit[half]", "column > limit[half]"),
    Change("keep another pattern", BACKWARD, "word(lane_key + e / 2 * 8)", "word(lane_key + e / 2 * 8 + 1)"),
    Change("forget the scale of keys", BACKWARD, "store_sums(key_sums, problem.scale", "store_sums(key_sums, 1.0f"),
    Change("store past the last row", BACKWARD, "if (row < rows && column < head_dim) {", "if (column < head_dim) {"),
    Change("store past the last column", BACKWARD, "if (row < rows && column < head_dim) {", "if (row < rows) {"),
    Change("sum the first head alone", BACKWARD, "head < gradient.attention.heads", "head < 1"),
    Change("take other columns", "ragged_tiles.cuh", "first_column / Tile::chunk_elements + chunk", "chunk"),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES if is_full_run() else CHANGES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    width = 256 if change.name == "take other columns" else 64
    tile = next(tile for tile in TILES if tile.element == "__half" and tile.width == width)
    library = build_changed(SOURCE, {f"{OP}_tiles.inc": f"VLEFF_TILE({', '.join(map(str, tile))})\n"}, change)
    inputs = make_inputs([5, 70], [3, 150], head_dim=width - 8, dtype=torch.float16, causal=True)
    inputs |= {"key_bias": torch.randn(153), "dropout_p": 0.2, "seed": torch.tensor([5])}
    for operand in "qkv":
        inputs[operand] = torch.randn(inputs[operand].shape).half()
    with pytest.raises(SHOWN):
        assert_gradients_match(library, inputs)
