"""The compiled CUDA kernels of vocabulary_log_probs, run on the CPU, against the reference in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import DTYPES, assert_same_bits, error, rounding
from cuda_kernels import KERNELS
from torch import Tensor
from vocabulary_cases import make_inputs

from vleff.ops import vocabulary_log_probs_reference

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import SHOWN, Field, boolean, data_type, int64, launch_alike, pointer, struct

pytestmark = pytest.mark.long

SOURCE = "vocabulary_log_probs_kernel.cu"
TILE_WORDS = 64
# rows, width, words: below, at and above the kernels' tiles, and at odd places of rows
SHAPES = [(1, 1, 1), (3, 17, 5), (64, 64, 64), (7, 200, 131), (70, 24, 129), (5, 9, 400)]
NAMES = ("hidden", "weight", "bias")


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


def in_dtype(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: x if x is None or name == "targets" else x.to(dtype) for name, x in inputs.items()}


def problem_of(inputs: dict[str, Any]) -> list[Field]:
    """vleff::cuda::VocabularyLogProbs"""
    sizes = (*inputs["hidden"].shape, inputs["weight"].shape[0])
    targets = struct(pointer("targets"), boolean(inputs["targets"].dtype == torch.int64))
    operands = pointer("hidden"), pointer("weight"), pointer("bias" if inputs["bias"] is not None else None)
    return [data_type(inputs["hidden"].dtype), *map(int64, sizes), *operands, targets, pointer("statistics")]


def emulated(
    build: EmulatedLibrary, inputs: dict[str, Any], grad: Tensor | None = None, chunk_words: int = 2 * TILE_WORDS
) -> dict[str, Tensor]:
    """The log-probabilities and, of <log_probs, grad>, the gradients."""
    tensors = {name: x for name, x in inputs.items() if x is not None}
    (rows, width), words, dtype = inputs["hidden"].shape, inputs["weight"].shape[0], inputs["hidden"].dtype
    problem = struct(*problem_of(inputs))
    tiles = -(-words // TILE_WORDS)
    shapes = {"statistics": (rows, 2), "partial": (rows, tiles, 2), "target_logits": (rows,), "log_probs": (rows,)}
    results = {name: (shape, torch.float32) for name, shape in shapes.items()}
    fields = [problem, *map(pointer, ("partial", "target_logits", "log_probs"))]
    forward = launch_alike(build, "vleff_vocabulary_log_probs_cuda", fields, tensors, results)
    found = {"log_probs": forward["log_probs"]}
    if grad is None:
        return found
    tensors |= {"statistics": forward["statistics"], "grad_log_probs": grad}
    results = {f"grad_{name}": (tuple(inputs[name].shape), dtype) for name in NAMES if inputs[name] is not None}
    scratch = {"logit_gradients": ((rows, chunk_words), dtype), "factors": ((rows,), torch.float32)}
    scratch |= {"partial": ((rows, width), torch.float32)}
    bias = pointer("grad_bias" if "grad_bias" in results else None)
    fields = [problem, pointer("grad_log_probs"), int64(chunk_words)]
    fields += [*map(pointer, ("logit_gradients", "factors", "partial", "grad_hidden", "grad_weight")), bias]
    back = launch_alike(build, "vleff_vocabulary_log_probs_backward_cuda", fields, tensors, results | scratch)
    return found | {name.removeprefix("grad_"): back[name] for name in results}


def gradients(function: Callable[..., Tensor], inputs: dict[str, Any], grad: Tensor) -> dict[str, Tensor]:
    """The result and gradients of <result, grad>; results of -inf are left out."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in NAMES if inputs[name] is not None}
    result = function(**inputs | leaves)
    loss = (result.masked_fill(result == -torch.inf, 0) * grad.to(result.dtype)).sum()
    found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return {"log_probs": result.detach()} | found


def assert_accurate(build: EmulatedLibrary, inputs: dict[str, Any]) -> None:
    """At most twice plain torch's error, or 2e-6 of the largest number, as the CPU op is tested, and one rounding."""
    grad = torch.randn(inputs["hidden"].shape[0])
    actual = emulated(build, inputs, grad)
    expected = gradients(vocabulary_log_probs_reference, in_dtype(inputs, torch.float64), grad)
    plain = gradients(vocabulary_log_probs_reference, inputs, grad)
    for name, exact in expected.items():
        if inputs["weight"].shape[0] == 1 and name != "log_probs":  # of one word the probability is 1
            assert actual[name].abs().max() <= 1e-3
            continue
        finite = exact[exact > -torch.inf].abs()
        largest = max(0.1, finite.max().item() if finite.numel() else 0.0)
        bound = max(2 * error(plain[name], exact), 2e-6 * largest) + rounding(exact, plain[name].dtype)
        assert error(actual[name], exact) <= bound, f"{name}: {error(actual[name], exact):.3g}, {bound:.3g}"


@pytest.mark.parametrize(
    "shape, dtype",
    [
        (shape, dtype)
        for number, shape in enumerate(SHAPES)
        for dtype in (DTYPES if is_full_run() or number == 4 else [DTYPES[number % 3]])
    ],
    ids=str,
)
def test_error_is_at_most_twice_plain_torch(
    build: EmulatedLibrary, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    assert_accurate(build, make_inputs(*shape, dtype, bias=shape[0] != 7))


def test_chunks_of_words_change_no_bit(build: EmulatedLibrary) -> None:
    inputs, grad = make_inputs(9, 24, 300, torch.float16), torch.randn(9)
    expected = emulated(build, inputs, grad, chunk_words=TILE_WORDS)
    for name, result in emulated(build, inputs, grad, chunk_words=5 * TILE_WORDS).items():
        if name != "bias":
            assert_same_bits(result, expected[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_depends_on_nothing_else(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs, grad = make_inputs(70, 24, 140, dtype), torch.randn(70)
    together = emulated(build, inputs, grad)
    few = inputs | {name: inputs[name][5:22].clone() for name in ("hidden", "targets")}
    alone = emulated(build, few, grad[5:22].clone())
    for name in ("log_probs", "hidden"):
        assert_same_bits(alone[name], together[name][5:22])


def test_rows_without_a_word_have_no_gradient(build: EmulatedLibrary) -> None:
    inputs = make_inputs(9, 16, 100)
    inputs["targets"] = torch.tensor([100, 2**31 - 1, -1, 200, 100, 100, 100, 100, 100], dtype=torch.int32)
    actual = emulated(build, inputs, torch.full((9,), torch.nan))
    assert (actual["log_probs"] == -torch.inf).all()
    assert all((actual[name] == 0).all() for name in NAMES)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_gradients_of_any_size_stay_within_float16(build: EmulatedLibrary, size: float) -> None:
    """The gradients of the logits of 300 words, times `size`, are no numbers of float16."""
    inputs, grad = make_inputs(9, 16, 300, torch.float16), size * torch.randn(9)
    inputs["weight"] = (inputs["weight"].float() / 64).half()
    if size < 1:
        inputs["hidden"] *= 1000
    else:
        inputs["hidden"] /= 64
        inputs["weight"] /= 64
    actual = emulated(build, inputs, grad)
    expected = gradients(vocabulary_log_probs_reference, in_dtype(inputs, torch.float64), grad)
    name = "weight" if size < 1 else "hidden"
    assert expected[name].abs().max() < 6e4
    assert error(actual[name], expected[name]) <= 8 * torch.finfo(torch.float16).eps * expected[name].abs().max()


def test_no_rows(build: EmulatedLibrary) -> None:
    actual = emulated(build, make_inputs(0, 16, 100), torch.zeros(0))
    assert actual["log_probs"].shape == (0,)
    assert all((actual[name] == 0).all() for name in ("weight", "bias"))


PRODUCTS, VOCABULARY = "ragged_products.cuh", "vocabulary_log_probs.cuh"
MISTAKES = [
    Change("forget the bias", VOCABULARY, "if (problem.bias && word", "if (false && word"),
    Change("drop the barrier of slices", PRODUCTS, "__syncthreads();  // the slices are in", "// the slices are in"),
    Change("drop the barrier of tiles", PRODUCTS, "__syncthreads();  // the tiles are in", "// the tiles are in"),
    Change("count words past the end", VOCABULARY, "log2_of_e : -INFINITY", "log2_of_e : 0.0f"),
    Change("forget earlier chunks", PRODUCTS, "if (!problem.first)", "if (false)"),
    Change("forget the factors", PRODUCTS, "weights[j][e] * (factors[row] / unit)", "weights[j][e]"),
    Change("forget to rescale", VOCABULARY, "* exp2_approximate(partial[2 * tile] - largest)", ""),
    Change("store past the last row", PRODUCTS, "half >= results.count) return 0;", "half > results.count) return 0;"),
    Change("take one slice", PRODUCTS, "load(column + Tile::width,", "load(column,"),
]


def check(change: Change | None) -> None:
    """A test of several tiles and chunks, cut at their edges,, on kernels with the change."""
    only = {"vocabulary_log_probs_tiles.inc": "VLEFF_TILE(__half, 64, 64, 64)\n"}
    library = build_changed(SOURCE, only, change)
    assert_accurate(library, make_inputs(70, 80, 200, torch.float16))


def test_kernels_without_mistakes_pass() -> None:
    check(None)


@pytest.mark.parametrize("change", MISTAKES if is_full_run() else MISTAKES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    with pytest.raises(SHOWN):
        check(change)
