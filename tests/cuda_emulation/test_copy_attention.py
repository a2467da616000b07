"""The compiled CUDA kernels of copy_attention, run on the CPU, against the reference in float64."""

from typing import Any

import pytest
import torch
from attention_cases import DTYPES, Inputs, assert_same_bits, error, offsets_of
from copy_cases import (
    EXTENDED,
    LEAVES,
    NOTHING,
    SHAPES,
    WORDS,
    exact,
    exact_gradients,
    in_dtype,
    inputs_far_below,
    make_inputs,
)
from cuda_kernels import KERNELS
from torch import Tensor

from vleff.ops import CopyMemory, copy_attention_reference, copy_attention_rows_reference

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import SHOWN, Field, boolean, data_type, float32, int64, launch_alike, pointer, struct

pytestmark = pytest.mark.long

SOURCE = "copy_attention_kernel.cu"
MEMORIES = ("question", "paragraph")
NO_INDEX = struct(pointer(None), boolean(False))


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


class CopyCall:
    """The structs of one call, its inputs and its scratch memory."""

    def __init__(self, inputs: Inputs) -> None:
        queries = inputs["queries"]
        self.rows, self.width = queries.shape
        self.dtype = queries.dtype
        self.tensors = {"queries": queries, "query_offsets": inputs["query_offsets"]}
        self.tensors["gate_logits"] = inputs["gate_logits"]
        self.strides = [min(inputs[name].max_length, len(inputs[name].ids)) for name in MEMORIES]
        self.gradient_strides = [-(-stride // 8) * 8 for stride in self.strides]
        self.logits: dict[str, Any] = {}
        memories = []
        for name, stride in zip(MEMORIES, self.strides, strict=True):
            memory = inputs[name]
            self.tensors |= {f"{name}_{part}": getattr(memory, part) for part in ("keys", "ids", "offsets")}
            self.logits[f"{name}_logits"] = ((self.rows, stride), torch.float32)
            arrays = (
                pointer(f"{name}_keys"),
                pointer(f"{name}_ids"),
                self.side(f"{name}_offsets", len(memory.ids), stride),
            )
            memories.append(struct(*arrays, pointer(f"{name}_logits"), int64(stride)))
        scale = inputs.get("scale")
        scale = self.width**-0.5 if scale is None else scale
        sizes = data_type(self.dtype), int64(inputs["query_offsets"].numel() - 1), int64(self.width)
        query_rows = self.side("query_offsets", self.rows, min(inputs["max_queries"], self.rows))
        self.common = struct(*sizes, pointer("queries"), query_rows, *memories, pointer("gate_logits"), float32(scale))

    @staticmethod
    def side(offsets: str, total: int, longest: int) -> Field:
        return struct(pointer(offsets), NO_INDEX, int64(total), int64(total), int64(longest))


def emulated(
    build: EmulatedLibrary,
    inputs: Inputs,
    grad: Tensor | None = None,
    coverage_grad: Tensor | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """log_probs, coverage_loss if asked for, and the gradients of <log_probs, grad> + <coverage_loss, coverage_grad>.

    Results hold what the op fills them with where rows belong to no sample: NaN here.
    """
    call, rows, coverage = CopyCall(inputs), len(inputs["targets"]), inputs.get("coverage", False)
    call.tensors |= {name: inputs[name] for name in ("generate_log_probs", "targets")}
    words = struct(pointer("targets"), boolean(inputs["targets"].dtype == torch.int64))
    outputs = pointer("log_probs"), pointer("statistics"), pointer("coverage_loss" if coverage else None)
    targets = struct(call.common, pointer("generate_log_probs"), words, *outputs)
    shapes = {"log_probs": (rows,), "statistics": (rows, 2, 4)} | ({"coverage_loss": (rows,)} if coverage else {})
    results = {name: (shape, torch.float32) for name, shape in shapes.items()}
    forward = launch_alike(
        build, "vleff_copy_attention_cuda", targets[1], call.tensors, results | call.logits, **options
    )
    found = {name: forward[name] for name in ("log_probs", "coverage_loss") if name in results}
    if grad is None:
        return found

    call.tensors |= {name: forward[name] for name in ("log_probs", "statistics")} | {"grad_log_probs": grad}
    if coverage_grad is not None:
        call.tensors["grad_coverage_loss"] = coverage_grad
    targets = struct(*targets[1][:-1], pointer(None))
    covered = [f"{name}_covered" for name in MEMORIES]
    gradients = [f"{name}_logit_gradients" for name in MEMORIES]
    scratch = dict(call.logits) | {"factors": ((rows,), torch.float32), "partial": ((rows, call.width), torch.float32)}
    if coverage_grad is not None:
        scratch |= dict(zip(covered, call.logits.values(), strict=True))
    scratch |= {name: ((rows, s), call.dtype) for name, s in zip(gradients, call.gradient_strides, strict=True)}
    results = {
        "queries": ((rows, call.width), call.dtype),
        **{name: (tuple(inputs[name].keys.shape), call.dtype) for name in MEMORIES},
        "gate_logits": ((rows, 3), call.dtype),
        "generate_log_probs": ((rows,), torch.float32),
    }
    results = {f"grad_{name}": result for name, result in results.items()}
    given = [pointer("grad_log_probs"), pointer("grad_coverage_loss" if coverage_grad is not None else None)]
    fields = [targets, *given, *[pointer(name if coverage_grad is not None else None) for name in covered]]
    fields += [*map(pointer, gradients), *map(int64, call.gradient_strides), pointer("factors"), pointer("partial")]
    fields += map(pointer, results)
    name = "vleff_copy_attention_backward_cuda"
    back = launch_alike(build, name, fields, call.tensors, results | scratch, **options)
    return found | {leaf: back[f"grad_{leaf}"] for leaf in LEAVES}


def emulated_rows(build: EmulatedLibrary, inputs: Inputs, **options: Any) -> Tensor:
    call, words, extended = CopyCall(inputs), inputs["vocabulary_logits"].shape[1], inputs["extended_size"]
    call.tensors["vocabulary_logits"] = inputs["vocabulary_logits"]
    fields = [call.common, int64(words), int64(extended), pointer("vocabulary_logits"), pointer("log_probs")]
    results = {"log_probs": ((call.rows, extended), torch.float32)}
    name = "vleff_copy_attention_rows_cuda"
    return launch_alike(build, name, fields, call.tensors, results | call.logits, **options)["log_probs"]


def assert_accurate(build: EmulatedLibrary, inputs: Inputs) -> None:
    """Results at most twice as far off as plain torch's; gradients as the CPU op's, whose terms may cancel."""
    dtype, rows = inputs["queries"].dtype, len(inputs["targets"])
    grad, coverage_grad = torch.randn(rows), torch.randn(rows) if inputs.get("coverage") else None
    actual = emulated(build, inputs, grad, coverage_grad)
    plain = dict(zip(("log_probs", "coverage_loss"), copy_attention_reference(**inputs), strict=True))
    expected = dict(zip(plain, exact(inputs), strict=True))
    for name in plain:
        if name not in actual:
            continue
        finite = expected[name][expected[name] > -torch.inf].abs()
        rounding = torch.finfo(torch.float32).eps * max(1.0, finite.max().item() if finite.numel() else 0.0)
        bound = 2 * error(plain[name], expected[name]) + 8 * rounding
        assert error(actual[name], expected[name]) <= bound, f"{name}: {error(actual[name], expected[name]):.3g}"
    for leaf, gradient in exact_gradients(inputs, grad, coverage_grad).items():
        largest = max(gradient.abs().max().item() if gradient.numel() else 0.0, 0.1)
        precision = torch.float32 if leaf == "generate_log_probs" else dtype
        assert error(actual[leaf], gradient) <= 16 * torch.finfo(precision).eps * largest, leaf


@pytest.mark.parametrize(
    "name, dtype, coverage",
    [
        (name, dtype, coverage)
        for number, name in enumerate([*SHAPES, *NOTHING])
        for dtype in (DTYPES if is_full_run() or number == 2 else [DTYPES[number % 3]])
        for coverage in ((False, True) if is_full_run() else [number != 3])
    ],
    ids=str,
)
def test_shapes_match_the_reference(build: EmulatedLibrary, name: str, dtype: torch.dtype, coverage: bool) -> None:
    assert_accurate(build, make_inputs(**(SHAPES | NOTHING)[name], dtype=dtype, coverage=coverage))


def test_logarithms_far_below_the_smallest_number(build: EmulatedLibrary) -> None:
    inputs = inputs_far_below()
    expected = exact(inputs)[0]
    assert (expected < -450).all()
    torch.testing.assert_close(emulated(build, inputs)["log_probs"].double(), expected, rtol=1e-6, atol=0)


def test_impossible_targets_have_no_gradient(build: EmulatedLibrary) -> None:
    inputs = make_inputs([(4, 5, 6)])
    inputs["targets"] = torch.tensor([EXTENDED + 5, -1, -(2**62), 2**62])
    inputs["generate_log_probs"] = torch.full((4,), -torch.inf)
    actual = emulated(build, inputs, torch.full((4,), torch.nan))
    assert (actual["log_probs"] == -torch.inf).all()
    assert all((actual[leaf] == 0).all() for leaf in LEAVES)


def test_coverage_of_repeated_queries(build: EmulatedLibrary) -> None:
    """Equal rows: each finds covered just what the ones before it attend to, so the loss is 1 a memory."""
    inputs = make_inputs([(5, 4, 9)], coverage=True)
    inputs["queries"] = inputs["queries"][:1].repeat(5, 1)
    torch.testing.assert_close(emulated(build, inputs)["coverage_loss"], torch.tensor([0.0, 2.0, 2.0, 2.0, 2.0]))
    assert_accurate(build, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_has_the_same_bits_alone(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs = make_inputs([(5, 9, 80), (7, 12, 33), (3, 0, 7)], 40, dtype, coverage=True)
    inputs["targets"] = inputs["targets"].int()
    grads = torch.randn(2, 15)
    together = emulated(build, inputs, *grads)
    rows = slice(5, 12)
    names = ("queries", "gate_logits", "generate_log_probs", "targets")
    alone = inputs | {name: inputs[name][rows].clone() for name in names}
    alone |= {"query_offsets": offsets_of([7]), "max_queries": 7}
    where = {"question": slice(9, 21), "paragraph": slice(80, 113)}
    for name, places in where.items():
        keys, ids = inputs[name].keys[places].clone(), inputs[name].ids[places].clone()
        alone[name] = CopyMemory(keys, ids, offsets_of([len(ids)]), len(ids))
    for name, result in emulated(build, alone, *grads[:, rows].clone()).items():
        assert_same_bits(result, together[name][where.get(name, rows)])


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_gradients_of_any_size_stay_within_float16(build: EmulatedLibrary, size: float) -> None:
    inputs = make_inputs([(9, 8, 30)], dtype=torch.float16, scale=0.25)
    inputs["paragraph"] = inputs["paragraph"]._replace(keys=(inputs["paragraph"].keys.float() / 1000).half())
    grad = size * torch.randn(9)
    inputs |= {"scale": 1.0 / size, "queries": inputs["queries"] * 0}
    actual, expected = emulated(build, inputs, grad), exact_gradients(inputs, grad)
    name = "queries"
    assert expected[name].abs().max() > 0.01
    assert error(actual[name], expected[name]) <= 16 * torch.finfo(torch.float16).eps * expected[name].abs().max()


def wrong_offsets(inputs: Inputs) -> list[Inputs]:
    wrong = torch.tensor([-5, 30, 4, 2**31 - 1], dtype=torch.int32)
    memories = [{name: inputs[name]._replace(offsets=wrong)} for name in MEMORIES]
    return [inputs | {"query_offsets": wrong}, *(inputs | memory for memory in memories)]


@pytest.mark.parametrize("number", range(3))
def test_wrong_offsets_touch_no_foreign_memory(build: EmulatedLibrary, number: int) -> None:
    inputs = make_inputs([(5, 9, 40), (7, 12, 33), (3, 0, 7)], 24, coverage=True)
    wrong = wrong_offsets(inputs)[number]
    assert emulated(build, wrong, *torch.randn(2, 15), alike=False)
    assert emulated_rows(build, as_rows(wrong), alike=False).shape == (15, EXTENDED)


def as_rows(inputs: Inputs, words: int = WORDS) -> Inputs:
    logits = (3 * torch.randn(len(inputs["queries"]), words)).to(inputs["queries"].dtype)
    without = {name: x for name, x in inputs.items() if name not in ("targets", "generate_log_probs", "coverage")}
    size = words + EXTENDED - WORDS
    without |= {name: inputs[name]._replace(ids=inputs[name].ids % size) for name in MEMORIES}
    return without | {"vocabulary_logits": logits, "extended_size": size}


def assert_rows_accurate(build: EmulatedLibrary, inputs: Inputs) -> None:
    rows = emulated_rows(build, inputs)
    doubled = in_dtype(inputs | {"generate_log_probs": torch.zeros(1)}, torch.float64)
    del doubled["generate_log_probs"]
    doubled["vocabulary_logits"] = inputs["vocabulary_logits"].double()
    expected = copy_attention_rows_reference(**doubled)
    assert rows.shape == expected.shape
    if rows.numel():
        plain_error = error(copy_attention_rows_reference(**inputs), expected)
        largest = max(1, expected[expected > -torch.inf].abs().max())
        assert error(rows, expected) <= 2 * plain_error + 8 * torch.finfo(torch.float32).eps * largest


@pytest.mark.parametrize("number", range(6))
def test_rows_match_the_reference(build: EmulatedLibrary, number: int) -> None:
    names = ["one of each", "width 17", "width 300", "empty samples", "no samples", "no memories"]
    for dtype in DTYPES if is_full_run() else [DTYPES[number % 3]]:
        inputs = make_inputs(**(SHAPES | NOTHING)[names[number]], dtype=dtype)
        assert_rows_accurate(build, as_rows(inputs, [1, 300, WORDS][number % 3]))


def test_rows_of_no_sample_are_impossible(build: EmulatedLibrary) -> None:
    inputs = as_rows(make_inputs([(5, 4, 9), (4, 3, 8)]))
    rows = emulated_rows(build, inputs | {"query_offsets": offsets_of([3, 1]), "max_queries": 3})
    assert (rows[4:] == -torch.inf).all() and (rows[:4, :WORDS] > -torch.inf).all()
    outside = inputs["paragraph"]._replace(ids=torch.full((17,), 2**31 - 1, dtype=torch.int32))
    assert emulated_rows(build, inputs | {"paragraph": outside}).shape == (9, EXTENDED)


COMMON, TARGETS, GRADIENT, ROWS = (f"copy_attention{part}.cuh" for part in ("", "_targets", "_gradient", "_rows"))
MISTAKES = [
    Change("compare no ids", TARGETS, "if (row.ids[position] == target) target_sum", "target_sum"),
    Change("leave closed gates open", COMMON, ".count > 0;", ".count >= 0;"),
    Change("forget the second memory", COMMON, "is_second ? problem.memories[1]", "is_second ? problem.memories[0]"),
    Change("cover too early", TARGETS, "    covered += attention;\n", ""),
    Change("forget the losses behind", GRADIENT, "    behind += grad - own;\n", ""),
    Change(
        "forget the mean", GRADIENT, "coverage_of(source, position) - means[source]", "coverage_of(source, position)"
    ),
    Change("divide by no unit", GRADIENT, "gradient.factors[query] = unit", "gradient.factors[query] = 1.0f"),
    Change("copy from the first position only", ROWS, "i < memory.count; ++i", "i <= position; ++i"),
    Change("let all positions add", ROWS, "if (!is_first) continue;", ""),
    Change("drop the barrier of sums", ROWS, "__syncthreads();  // the warps' values are in", ""),
]


def check(change: Change | None) -> None:
    """A test with everything, on kernels with the change."""
    library = build_changed(SOURCE, {"copy_attention_tiles.inc": "VLEFF_TILE(float, 64, 64, 64)\n"}, change)
    inputs = make_inputs([(5, 9, 70), (4, 0, 9), (3, 5, 8)], 70, coverage=True)
    inputs["queries"][3] = inputs["queries"][2]
    inputs["queries"][1] = inputs["queries"][0]
    assert_accurate(library, inputs)
    assert_rows_accurate(library, as_rows(inputs, 300))


def test_kernels_without_mistakes_pass() -> None:
    check(None)


@pytest.mark.parametrize("change", MISTAKES if is_full_run() else MISTAKES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    with pytest.raises(SHOWN):
        check(change)
