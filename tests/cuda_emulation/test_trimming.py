"""The compiled CUDA kernels of trim_tokens and trim_heads, run on the CPU, against their references in float64."""

from typing import Any

import pytest
import torch
from cuda_kernels import KERNELS
from torch import Tensor
from trim_cases import LENGTHS, cast, head_arguments, offsets_of, token_arguments

from vleff.ops import trim_heads_reference, trim_tokens_reference

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import (
    SHOWN,
    EmulationError,
    Field,
    Results,
    boolean,
    data_type,
    float32,
    int64,
    launch_alike,
    pointer,
    struct,
)

pytestmark = pytest.mark.long

TOKENS, HEADS = "trim_tokens_kernel.cu", "trim_heads_kernel.cu"
ARCHITECTURES = ["compute_80", "compute_90"] if is_full_run() else ["compute_80"]
# Of all but the last dtype the states are rounded where they are multiplied.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 5e-6}
all_dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
some_dtypes = pytest.mark.parametrize("dtype", TOLERANCES if is_full_run() else [torch.bfloat16], ids=str)
Arguments = dict[str, Any]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tokens_build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / TOKENS, request.param)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def heads_build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / HEADS, request.param)


def tensors_of(arguments: Arguments) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def addresses(arguments: Arguments, *names: str) -> list[Field]:
    return [pointer(name if arguments.get(name) is not None else None) for name in names]


def emulated_tokens(build: EmulatedLibrary, arguments: Arguments) -> Results:
    """The results of `vleff.ops.trim_tokens` by name, survivors as on CUDA"""
    values, parts = arguments["values"], arguments["parts"]
    (tokens, width), count = values.shape, len(parts) - 1
    rank = len(arguments["local_weight"])
    other_weight = arguments.get("other_weight")
    scratch = {"statistics": (tokens, 2), "local": (tokens, rank)}
    scratch |= {"from_pooled": (count, rank), "direction": (count, rank)}
    results = {"pooled": (count, width), "logits": (tokens,), "kept_parts": (count + 1,), "survivors": (tokens,)}
    weights = ("local_weight", "global_weight", "hidden_weight", "hidden_bias", "score_weight", "score_bias")
    problem = [
        data_type(values.dtype),
        *map(int64, (tokens, width, count, rank)),
        *addresses(arguments, "values", "parts", "pinned", *weights),
        *(float32(arguments["threshold"]), float32(1e-5), boolean(arguments.get("paired", False))),
        *addresses(arguments, "other", "other_weight"),
        int64(width if other_weight is None else other_weight.shape[1]),
        *addresses(arguments, "temperature"),
        *map(pointer, (*scratch, *results)),
    ]
    integers = ("kept_parts", "survivors")
    shapes = {
        name: (shape, torch.int32 if name in integers else torch.float32) for name, shape in (scratch | results).items()
    }
    found = launch_alike(build, "vleff_trim_tokens_cuda", problem, tensors_of(arguments), shapes)
    return {name: found[name] for name in results}


def in_float64(arguments: Arguments) -> Arguments:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def assert_tokens_match(build: EmulatedLibrary, arguments: Arguments, dtype: torch.dtype, tolerance: float) -> None:
    """The bounds of the CPU op's tests; near ties may fall either way, so survivors must be those of our logits."""
    rounded = cast(arguments, dtype)
    found = emulated_tokens(build, rounded)
    _, _, pooled, logits = trim_tokens_reference(**in_float64(rounded))
    for name, expected in (("pooled", pooled), ("logits", logits)):
        scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
        torch.testing.assert_close(found[name].double(), expected, atol=tolerance * scale, rtol=0, msg=name)
    parts = arguments["parts"].long()
    keep = found["logits"] > arguments["threshold"]
    keep[parts[:-1][parts.diff() > 0]] = True
    if arguments.get("pinned") is not None:
        keep |= arguments["pinned"]
    kept = keep.nonzero()[:, 0].int()
    assert torch.equal(found["survivors"][: len(kept)], kept) and (found["survivors"][len(kept) :] == 0).all()
    before = torch.cat([torch.zeros(1), keep.cumsum(0)])
    assert torch.equal(found["kept_parts"], before[parts].int())


SIZES = ((40, 5), (130, 70)) if is_full_run() else ((130, 70),)
CASES = [(lengths, size) for lengths in LENGTHS for size in SIZES] + [((5, 1, 66), (64, 8))]


@pytest.mark.parametrize("kind", ["alone", "paired", "other"] if is_full_run() else ["paired"])
@pytest.mark.parametrize("lengths, size", CASES, ids=str)
def test_tokens_match_the_reference(
    tokens_build: EmulatedLibrary, lengths: tuple, size: tuple[int, int], kind: str
) -> None:
    if kind == "paired" and len(lengths) % 2:
        lengths = (*lengths, 2)
    assert_tokens_match(tokens_build, token_arguments(lengths, *size, kind), torch.float32, 5e-6)


@all_dtypes
@pytest.mark.parametrize("kind", ["alone", "other"])
def test_tokens_of_every_dtype(tokens_build: EmulatedLibrary, dtype: torch.dtype, kind: str) -> None:
    arguments = token_arguments((20, 7, 0, 71), 130, 96, kind) | {"pinned": torch.rand(98) < 0.2}
    assert_tokens_match(tokens_build, arguments, dtype, TOLERANCES[dtype])


def test_outliers(tokens_build: EmulatedLibrary) -> None:
    arguments = token_arguments((20, 7), 300, 33, "paired", outliers=True)
    assert_tokens_match(tokens_build, arguments, torch.float32, 2e-5)


def test_more_tokens_than_threads_are_listed(tokens_build: EmulatedLibrary) -> None:
    assert_tokens_match(tokens_build, token_arguments((1500, 0, 700), 8, 3), torch.float32, 5e-6)


@some_dtypes
def test_a_part_has_the_same_bits_alone(tokens_build: EmulatedLibrary, dtype: torch.dtype) -> None:
    lengths = (31, 5, 77, 2)
    arguments = cast(token_arguments(lengths, 96, 12, "other"), dtype)
    together = emulated_tokens(tokens_build, arguments)
    bounds = offsets_of(lengths).tolist()
    for part in (1, 2):
        rows = slice(bounds[part], bounds[part + 1])
        alone = arguments | {"values": arguments["values"][rows].clone(), "parts": offsets_of((lengths[part],))}
        found = emulated_tokens(tokens_build, alone | {"other": arguments["other"][part : part + 1].clone()})
        assert torch.equal(found["logits"], together["logits"][rows])
        assert torch.equal(found["pooled"][0], together["pooled"][part])


def test_tokens_of_no_part_do_not_stay(tokens_build: EmulatedLibrary) -> None:
    arguments = cast(token_arguments((9, 30), 40, 5), torch.float32)
    cut = arguments | {"parts": offsets_of((9, 4)), "threshold": -1e30}
    found = emulated_tokens(tokens_build, cut)
    assert found["survivors"].tolist() == [*range(13), *[0] * 26] and found["kept_parts"].tolist() == [0, 9, 13]
    assert (found["logits"][13:] == -torch.inf).all()


@pytest.mark.parametrize("parts", [[0, 2**31 - 1, -5, 20, 3], [-(2**31), 50, 10, 10, 2**31 - 1]], ids=str)
def test_wrong_offsets_touch_no_foreign_memory(tokens_build: EmulatedLibrary, parts: list[int]) -> None:
    arguments = cast(token_arguments((9, 30, 1, 2), 40, 5, "paired"), torch.float32)
    emulated_tokens(tokens_build, arguments | {"parts": torch.tensor(parts, dtype=torch.int32)})


def emulated_heads(build: EmulatedLibrary, arguments: Arguments) -> Results:
    """kept and logits of `vleff.ops.trim_heads`"""
    pooled, memory = arguments["pooled"], arguments["memory_pooled"]
    batch, (heads, rank) = len(pooled), arguments["score_weight"].shape
    widths = [int64(pooled.shape[1]), int64(0 if memory is None else memory.shape[1])]
    problem = [
        data_type(arguments["hidden_weight"].dtype),
        *map(int64, (batch, rank, heads)),
        struct(*widths),
        struct(*addresses(arguments, "pooled", "memory_pooled")),
        *addresses(arguments, "hidden_weight", "hidden_bias", "score_weight", "score_bias"),
        float32(arguments["threshold"]),
        *(pointer("logits"), pointer("kept")),
    ]
    results = {"logits": ((batch, heads), torch.float32), "kept": ((batch, heads), torch.uint8)}
    return launch_alike(build, "vleff_trim_heads_cuda", problem, tensors_of(arguments), results)


@all_dtypes
@pytest.mark.parametrize(
    "sizes", [(3, 64, 0, 8, 4), (2, 300, 40, 96, 12), (0, 16, 0, 4, 2), (2, 17, 9, 33, 40)], ids=str
)
def test_heads_match_the_reference(heads_build: EmulatedLibrary, sizes: tuple, dtype: torch.dtype) -> None:
    arguments = cast(head_arguments(*sizes), dtype)
    found = emulated_heads(heads_build, arguments)
    _, expected = trim_heads_reference(**in_float64(arguments))
    torch.testing.assert_close(found["logits"].double(), expected, atol=2e-5, rtol=1e-5)
    if sizes[0]:
        best = torch.nn.functional.one_hot(found["logits"].argmax(1), sizes[-1]).bool()
        assert torch.equal(found["kept"].bool(), (found["logits"] > arguments["threshold"]) | best)


def test_the_first_of_the_highest_heads_stays(heads_build: EmulatedLibrary) -> None:
    arguments = cast(head_arguments(2, 32, 0, 4, 5), torch.float32)
    arguments |= {"threshold": 1e6, "score_weight": torch.zeros(5, 4), "score_bias": torch.zeros(5)}
    assert emulated_heads(heads_build, arguments)["kept"].tolist() == [[1, 0, 0, 0, 0]] * 2


SCORE, PARTS, OF_HEADS = "trim_tokens_score.cuh", "trim_tokens.cuh", "trim_heads.cuh"
CHANGES = [
    Change("count without a barrier", SCORE, "__syncthreads();  // all counts", ";  // all counts"),
    Change("count in one buffer", SCORE, "first += list_threads, buffer ^= 1", "first += list_threads"),
    Change("search before all survivors are there", SCORE, "__syncthreads();  // the survivors", ";  // the survivors"),
    Change("add halves without a barrier", SCORE, "__syncthreads();  // the sums", ";  // the sums"),
    Change("use vectors without a barrier", PARTS, "__syncthreads();  // both", ";  // both"),
    Change("forget the first token", SCORE, "problem.offsets[part] == token ||", ""),
    Change("forget the other half of the columns", SCORE, "partial[row] + partial[Tile::rows + row]", "partial[row]"),
    Change("take the part itself as partner", PARTS, "has_partner ? part ^ 1 : part", "part"),
    Change("forget to subtract the mean", PARTS, " - of_token.x) * of_token.y", ") * of_token.y"),
    Change("project padding", PARTS, "if (first_token + row >= tokens) return;\n#pragma", "\n#pragma"),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES if is_full_run() else CHANGES[:1], ids=lambda change: change.name)
def test_mistakes_in_trim_tokens_are_found(change: Change) -> None:
    only = {"trim_tokens_tiles.inc": "VLEFF_TILE(float, 64, 64, 32)\n"}
    arguments = token_arguments((1100, 4, 30, 7), 40, 70, "paired")
    with pytest.raises(SHOWN):
        assert_tokens_match(build_changed(TOKENS, only, change), arguments, torch.float32, 5e-6)


@pytest.mark.parametrize("barrier", ["the hidden layer is there", "the logits are there"])
def test_mistakes_in_trim_heads_are_found(barrier: str) -> None:
    change = Change(barrier, OF_HEADS, f"__syncthreads();  // {barrier}", "")
    arguments = cast(head_arguments(2, 64, 0, 40, 12), torch.float32)
    with pytest.raises(EmulationError, match="race"):
        emulated_heads(build_changed(HEADS, {}, change), arguments)
