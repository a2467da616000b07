"""The compiled CUDA kernels of attention_distillation, run on the CPU, against the reference in float64."""

from typing import Any

import pytest
import torch
from attention_cases import (
    DTYPES,
    Inputs,
    assert_close,
    assert_same_bits,
    assert_within_twice_plain,
    error,
    offsets_of,
    rounding,
)
from cuda_kernels import KERNELS, MOST_SHARED_BYTES, Tile, listed_tiles
from distillation_cases import NOTHING, OPERANDS, SHAPES, STUDENT, exact, exact_gradients, gradients, make_inputs
from torch import Tensor

from vleff.ops import attention_distillation_reference

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import (
    DTYPE_OF,
    SHOWN,
    EmulationError,
    Field,
    data_type,
    float32,
    head_rows,
    int64,
    launch_alike,
    pointer,
    struct,
)

pytestmark = pytest.mark.long

SOURCE = "attention_distillation_kernel.cu"
TILES = listed_tiles("attention_distillation")
ODD_HEAD_SIZES = {64: (50, 7), 128: (40, 80), 256: (131, 200)}  # teacher's and student's, padded to a tile's width


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


def problem_of(inputs: Inputs, backward: bool) -> list[Field]:
    """vleff::cuda::DistillationProblem"""
    scales = [inputs.get(f"{name}_scale") for name in ("teacher", "student")]

    def side(name: str, scale: float | None) -> Field:
        q, k = (inputs[f"{name}_{operand}"] for operand in "qk")
        scale = q.shape[2] ** -0.5 if scale is None else scale
        rows = [head_rows(f"{name}_{operand}", x) for operand, x in (("q", q), ("k", k))]
        return struct(*rows, int64(q.shape[2]), float32(scale))

    def ragged(operand: str) -> Field:
        total = inputs[f"teacher_{operand}"].shape[0]
        index = struct(pointer(None), ("bool", False))
        sizes = int64(total), int64(total), int64(inputs[f"max_{operand}"])
        return struct(pointer(f"{operand}_offsets"), index, *sizes)

    q = inputs["teacher_q"]
    sides = side("teacher", scales[0]), side("student", scales[1]), ragged("q"), ragged("k")
    sizes = data_type(q.dtype), int64(inputs["q_offsets"].numel() - 1), int64(q.shape[1])
    return [*sizes, *sides, pointer(None if backward else "divergence"), pointer("statistics")]


def emulated(build: EmulatedLibrary, inputs: Inputs, grad: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """The divergence and, of <divergence, grad>, the gradients of the student's operands."""
    rows, heads = inputs["teacher_q"].shape[:2]
    tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
    results = {"divergence": ((rows, heads), torch.float32), "statistics": ((rows, heads, 4), torch.float32)}
    problem = problem_of(inputs, backward=False)
    forward = launch_alike(build, "vleff_attention_distillation_cuda", problem, tensors, results, **options)
    found = {"divergence": forward["divergence"]}
    if grad is None:
        return found
    tensors |= {"statistics": forward["statistics"], "grad_divergence": grad.clone()}
    problem = [struct(*problem_of(inputs, backward=True)), *map(pointer, ("grad_divergence", "grad_q", "grad_k"))]
    of_student = {f"grad_{name[-1]}": (tuple(inputs[name].shape), inputs[name].dtype) for name in STUDENT}
    back = launch_alike(build, "vleff_attention_distillation_backward_cuda", problem, tensors, of_student, **options)
    return found | {name: back[f"grad_{name[-1]}"] for name in STUDENT}


def expected_of(inputs: Inputs, grad: Tensor) -> dict[str, Tensor]:
    return {"divergence": exact(inputs)} | exact_gradients(inputs, grad)


def assert_accurate(build: EmulatedLibrary, inputs: Inputs) -> None:
    """At most twice the error of plain torch in the same dtype."""
    dtype, grad = inputs["student_q"].dtype, torch.randn(inputs["student_q"].shape[:2])
    actual, expected = emulated(build, inputs, grad), expected_of(inputs, grad)
    plain = {"divergence": attention_distillation_reference(**inputs)}
    plain |= gradients(attention_distillation_reference, inputs, grad)
    for name in expected:
        assert_within_twice_plain([actual[name]], [expected[name]], [plain[name]], dtype=dtype)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_error_is_at_most_twice_plain_torch(build: EmulatedLibrary, tile: Tile) -> None:
    """Several tiles of queries and of keys, the last of them not full; other sizes of teacher and student."""
    lengths = [tile.stationary_rows + 5, 1, 3], [tile.stationary_rows + tile.streamed_rows + 3, tile.streamed_rows, 5]
    assert_accurate(build, make_inputs(*lengths, 2, *ODD_HEAD_SIZES[tile.width], DTYPE_OF[tile.element]))


@pytest.mark.parametrize("tile", TILES if is_full_run() else TILES[::4], ids=str)
def test_full_width(build: EmulatedLibrary, tile: Tile) -> None:
    assert_accurate(build, make_inputs([tile.stationary_rows], [17], 1, tile.width, dtype=DTYPE_OF[tile.element]))


@pytest.mark.parametrize(
    "name, dtype",
    [
        (name, dtype)
        for number, name in enumerate([*SHAPES, *NOTHING])
        for dtype in (DTYPES if is_full_run() else [DTYPES[number % 3]])
    ],
    ids=str,
)
def test_shapes_match_the_reference(build: EmulatedLibrary, name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(**(SHAPES | NOTHING)[name], dtype=dtype, outliers=False)
    grad = torch.randn(inputs["student_q"].shape[:2])
    actual, expected = emulated(build, inputs, grad), expected_of(inputs, grad)
    for result in expected:
        precision = torch.float32 if result == "divergence" else dtype
        bound = 32 * max(rounding(expected[result], precision), torch.finfo(precision).eps)
        assert error(actual[result], expected[result]) <= bound, result


def test_scales_and_huge_logits(build: EmulatedLibrary) -> None:
    """Products of float32 have an error near 2 ** -22; the divergence inherits that of the logits."""
    inputs = make_inputs([19], [70], teacher_scale=10.0, student_scale=-10.0)
    expected = exact(inputs)
    assert expected.max() > 1e3
    q, k = (inputs[f"student_{operand}"].abs().amax() for operand in "qk")
    assert error(emulated(build, inputs)["divergence"], expected) <= 2**-22 * 10 * q * k


def test_a_student_equal_to_its_teacher_has_no_divergence(build: EmulatedLibrary) -> None:
    inputs = make_inputs([17], [70], teacher_dim=64)
    inputs |= {"student_q": inputs["teacher_q"], "student_k": inputs["teacher_k"]}
    actual = emulated(build, inputs, torch.randn(17, 2))
    assert all((actual[name] == 0).all() for name in ("divergence", *STUDENT))


def test_logits_far_below_zero(build: EmulatedLibrary) -> None:
    """Beside those, the zeros that fill a tile would be the largest logits."""
    inputs = make_inputs([5], [7], dtype=torch.float16, outliers=False)
    inputs |= {name: 20 * inputs[name].abs() * (1 if name.endswith("q") else -1) for name in OPERANDS}
    assert_accurate(build, inputs)


@pytest.mark.parametrize("size", [1e-12, 1e9])
def test_gradients_of_any_size_stay_within_float16(build: EmulatedLibrary, size: float) -> None:
    """Only what the results can hold limits them: not the rounding of grad * (Q - P)."""
    inputs = make_inputs([40], [30], teacher_dim=16, dtype=torch.float16, outliers=False)
    inputs["student_scale"] = 0.25 / size
    inputs["student_q"] = (inputs["student_q"].float() * 0).half()
    grad = size * torch.randn(40, 2)
    actual, expected = emulated(build, inputs, grad), expected_of(inputs, grad)
    assert expected["student_q"].abs().max() > 0.01
    assert_close(actual["student_q"], expected["student_q"], torch.float16)
    inputs = make_inputs([40], [30], teacher_dim=16, dtype=torch.float16, outliers=False)
    inputs["student_scale"] = 0.25 / size
    inputs["student_k"] = (inputs["student_k"].float() * 0).half()
    actual, expected = emulated(build, inputs, grad), expected_of(inputs, grad)
    assert expected["student_k"].abs().max() > 0.01
    assert_close(actual["student_k"], expected["student_k"], torch.float16)


def test_rows_of_no_sample_are_empty(build: EmulatedLibrary) -> None:
    inputs = make_inputs([70, 30], [80, 40], teacher_dim=24)
    inputs |= {"q_offsets": offsets_of([9, 4]), "k_offsets": offsets_of([20, 11])}
    actual = emulated(build, inputs, torch.randn(100, 2))
    assert all((actual[name][13:] == 0).all() for name in ("divergence", "student_q"))
    assert (actual["student_k"][31:] == 0).all()
    cut = {name: inputs[name][: 13 if name.endswith("_q") else 31] for name in OPERANDS}
    assert_same_bits(emulated(build, inputs | cut)["divergence"], actual["divergence"][:13])


def test_layouts_change_no_bit(build: EmulatedLibrary) -> None:
    """Views of a fused projection, heads outermost, rows that start at no multiple of 16 bytes."""
    inputs = make_inputs([13, 7], [13, 7], teacher_dim=40, dtype=torch.float16)
    grad = torch.randn(20, 2)
    expected = emulated(build, inputs, grad)
    stacked = torch.stack([inputs[name] for name in OPERANDS], 1)
    unaligned = torch.nn.functional.pad(stacked, (1, 2))[..., 1:-2]
    by_head = stacked.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)
    for views in (stacked, unaligned, by_head):
        actual = emulated(build, inputs | dict(zip(OPERANDS, views.unbind(1), strict=True)), grad)
        for name, result in expected.items():
            assert_same_bits(actual[name], result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_has_the_same_bits_alone(build: EmulatedLibrary, dtype: torch.dtype) -> None:
    inputs = make_inputs([17, 70, 5], [40, 90, 3], teacher_dim=40, dtype=dtype)
    grad = torch.randn(92, 2)
    together = emulated(build, inputs, grad)
    queries, keys = slice(17, 87), slice(40, 130)
    alone = make_inputs([70], [90], teacher_dim=40, dtype=dtype)
    alone |= {name: inputs[name][queries if name.endswith("_q") else keys] for name in OPERANDS}
    for name, result in emulated(build, alone, grad[queries]).items():
        assert_same_bits(result, together[name][keys if name == "student_k" else queries])


@pytest.mark.parametrize("side", ["q", "k"])
def test_wrong_offsets_touch_no_foreign_memory(build: EmulatedLibrary, side: str) -> None:
    inputs = make_inputs([17, 1, 0, 32], [23, 7, 5, 31], teacher_dim=40)
    wrong = torch.tensor([-5, 50, 10, 2**31 - 1, 20], dtype=torch.int32)
    assert emulated(build, inputs | {f"{side}_offsets": wrong}, torch.randn(50, 2), alike=False)


def test_shared_memory(build: EmulatedLibrary) -> None:
    for tile in TILES:
        rows = 2 * (tile.stationary_rows + tile.streamed_rows)
        needed = rows * tile.width * DTYPE_OF[tile.element].itemsize + 5 * tile.streamed_rows * 4
        assert needed <= MOST_SHARED_BYTES
    inputs = make_inputs([3], [4], teacher_dim=tile.width, dtype=DTYPE_OF[tile.element])
    emulated(build, inputs, torch.ones(3, 2), shared_limit=needed)
    with pytest.raises(EmulationError, match="CUDA error 1"):
        emulated(build, inputs, torch.ones(3, 2), shared_limit=needed - 1)


COMMON, FORWARD = "attention_distillation.cuh", "attention_distillation_forward.cuh"
BACKWARD = "attention_distillation_backward.cuh"
TEACHER_BARRIER = "__syncthreads();  // the teacher's tile is in, and every warp has left the student's"
STUDENT_BARRIER = "__syncthreads();  // the student's tile is in, and every warp has left the teacher's"
MISTAKES = [
    Change("mix up the sides' tiles", COMMON, "student, memory.student_tile", "student, memory.teacher_tile"),
    Change("drop the first barrier", COMMON, TEACHER_BARRIER, ""),
    Change("drop the second barrier", COMMON, STUDENT_BARRIER, ""),
    Change("forget the shift of the weighted sum", FORWARD, "(weighted + teacher_sum * shift)", "weighted"),
    Change("count keys past the end", FORWARD, "2 * lane.thread + e >= present", "2 * lane.thread + e > present"),
    Change("swap teacher and student", BACKWARD, "present ? (q - p) * grad : 0.0f", "present ? (p - q) * grad : 0.0f"),
    Change("forget which column", BACKWARD, "for (int e = column; e < 4; e += 2)", "for (int e = 0; e < 4; e += 1)"),
    Change(
        "divide grad_k by no unit",
        BACKWARD,
        "const float back = unit / weight_unit",
        "const float back = 1.0f / weight_unit",
    ),
    Change("store past the last row", FORWARD, "lane.thread == 0 && row < rows", "lane.thread == 0"),
]


def check(change: Change | None) -> None:
    """A test of several tiles, cut at their edges,, on kernels with the change."""
    only = {"attention_distillation_tiles.inc": "VLEFF_TILE(__half, 64, 64, 64)\n"}
    library = build_changed(SOURCE, only, change)
    inputs = make_inputs([5, 70], [3, 151], 2, 56, 24, torch.float16)
    assert_accurate(library, inputs)


def test_kernels_without_mistakes_pass() -> None:
    check(None)


@pytest.mark.parametrize("change", MISTAKES if is_full_run() else MISTAKES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    with pytest.raises(SHOWN):
        check(change)
