"""attention_distillation and its gradients against the reference in float64, at every instruction-set level."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from attention_cases import DTYPES, assert_close, assert_same_bits, assert_within_twice_plain, error, rounding
from distillation_cases import (
    NOTHING,
    OPERANDS,
    SHAPES,
    STUDENT,
    exact,
    exact_gradients,
    gradients,
    in_dtype,
    make_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vleff.ops import attention_distillation, attention_distillation_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DRAWS = 4
LENGTH = st.integers(0, 12) | st.integers(0, 70)


@cache
def draws_and_yardsticks(name: str, dtype: torch.dtype) -> tuple:
    """Inputs with output gradients; divergences and gradients in float64 and of the formula in dtype."""
    draws = []
    for _ in range(DRAWS):
        inputs = make_inputs(**SHAPES[name], dtype=dtype)
        draws.append((inputs, torch.randn(inputs["student_q"].shape[:2])))
    expected = [(exact(inputs), exact_gradients(inputs, grad)) for inputs, grad in draws]
    plain = [
        (attention_distillation_reference(**inputs), gradients(attention_distillation_reference, inputs, grad))
        for inputs, grad in draws
    ]
    return draws, expected, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    draws, expected, plain = draws_and_yardsticks(name, dtype)
    results = [attention_distillation(**inputs) for inputs, _ in draws]
    assert all(result.dtype == torch.float32 for result in results)
    assert_within_twice_plain(results, [e[0] for e in expected], [p[0] for p in plain], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_gradient_error_is_at_most_twice_plain_torch(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    draws, expected, plain = draws_and_yardsticks(name, dtype)
    actual = [gradients(attention_distillation, *draw) for draw in draws]
    for operand in STUDENT:
        assert all(found[operand].dtype == dtype for found in actual)
        assert_within_twice_plain(
            [found[operand] for found in actual],
            [e[1][operand] for e in expected],
            [p[1][operand] for p in plain],
            dtype=dtype,
        )


@pytest.mark.parametrize("name", [*NOTHING, "empty samples"])
def test_empty_samples(cpu_isa: str, name: str) -> None:
    inputs = make_inputs(**(SHAPES | NOTHING)[name])
    divergence = attention_distillation(**inputs)
    assert_close(divergence, exact(inputs), torch.float32)
    without_keys = (inputs["k_offsets"].diff() == 0).repeat_interleave(inputs["q_offsets"].diff())
    without_queries = (inputs["q_offsets"].diff() == 0).repeat_interleave(inputs["k_offsets"].diff())
    actual = gradients(attention_distillation, inputs, torch.randn(divergence.shape))
    assert (divergence[without_keys] == 0).all()
    assert (actual["student_q"][without_keys] == 0).all() and (actual["student_k"][without_queries] == 0).all()
    assert all(gradient.isfinite().all() for gradient in actual.values())


def test_scales(cpu_isa: str) -> None:
    inputs = make_inputs([17, 4], [30, 9], 2, 40, 24, teacher_scale=-0.3, student_scale=0.7, outliers=False)
    assert_close(attention_distillation(**inputs), exact(inputs), torch.float32)
    grad = torch.randn(21, 2)
    actual, expected = gradients(attention_distillation, inputs, grad), exact_gradients(inputs, grad)
    for operand in STUDENT:
        assert_close(actual[operand], expected[operand], torch.float32)
    assert (attention_distillation(**inputs | {"teacher_scale": 0.0, "student_scale": 0.0}).abs() < 1e-6).all()


def test_a_student_equal_to_its_teacher_has_no_divergence(cpu_isa: str) -> None:
    inputs = make_inputs([17, 60], [40, 9], teacher_dim=64)
    inputs |= {"student_q": inputs["teacher_q"], "student_k": inputs["teacher_k"]}
    assert (attention_distillation(**inputs) == 0).all()
    for gradient in gradients(attention_distillation, inputs, torch.randn(77, 2)).values():
        assert gradient.abs().max() < 1e-4  # rounding of P and Q, times operands in the hundreds


def test_huge_logits_stay_finite(cpu_isa: str) -> None:
    inputs = make_inputs([19], [33], teacher_scale=10.0, student_scale=-10.0)
    divergence, grad = attention_distillation(**inputs), torch.ones(19, 2)
    assert divergence.max() > 1e3
    formula = attention_distillation_reference(**inputs)
    assert_within_twice_plain([divergence], [exact(inputs)], [formula], dtype=torch.float32)
    actual, expected = gradients(attention_distillation, inputs, grad), exact_gradients(inputs, grad)
    plain = gradients(attention_distillation_reference, inputs, grad)
    for name in STUDENT:
        assert_within_twice_plain([actual[name]], [expected[name]], [plain[name]], dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_a_fused_projection(cpu_isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs([13, 7], [13, 7], teacher_dim=40, dtype=dtype)
    fused = torch.randn(20, 4, 2, 40, dtype=dtype)
    views = dict(zip(("teacher_q", "teacher_k", "student_q", "student_k"), fused.unbind(1), strict=True))
    views["student_k"] = views["student_k"].transpose(0, 1).contiguous().transpose(0, 1)
    dense = {name: view.contiguous() for name, view in views.items()}
    grad = torch.randn(2, 20).T
    assert_same_bits(attention_distillation(**inputs | views), attention_distillation(**inputs | dense))
    from_views = gradients(attention_distillation, inputs | views, grad)
    for name, gradient in gradients(attention_distillation, inputs | dense, grad.contiguous()).items():
        assert_same_bits(from_views[name], gradient)


def results_and_gradients(inputs: dict) -> dict[str, Tensor]:
    """The divergence and its gradients, for output gradients that are functions of the inputs' rows."""
    grad = inputs["teacher_q"][..., 0].float()
    results = {"divergence": attention_distillation(**inputs)}
    return results | gradients(attention_distillation, inputs, grad)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH), min_size=2, max_size=33),
    dims=st.tuples(st.sampled_from([1, 5, 16, 40, 64]), st.sampled_from([3, 40, 64])),
    dtype=st.sampled_from(DTYPES),
)
def test_a_sample_does_not_depend_on_its_batch_mates(
    cpu_isa: str, lengths: list[tuple[int, int]], dims: tuple[int, int], dtype: torch.dtype
) -> None:
    q_lengths, k_lengths = [queries for queries, _ in lengths], [keys for _, keys in lengths]
    inputs = make_inputs(q_lengths, k_lengths, 2, *dims, dtype)
    together = results_and_gradients(inputs)
    for sample in range(len(lengths)):
        queries = slice(*inputs["q_offsets"][sample : sample + 2].tolist())
        keys = slice(*inputs["k_offsets"][sample : sample + 2].tolist())
        alone = make_inputs([q_lengths[sample]], [k_lengths[sample]], 2, *dims, dtype)
        alone |= {name: inputs[name][queries if name.endswith("_q") else keys] for name in OPERANDS}
        for name, result in results_and_gradients(alone).items():
            assert_same_bits(result, together[name][keys if name == "student_k" else queries])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [([300], [150]), ([0, 17, 140, 3], [5, 90, 12, 0]), ([5] * 20, [9] * 20)], ids=str)
def test_threads_change_no_bit(
    cpu_isa: str, with_threads: Callable, lengths: tuple[list[int], list[int]], dtype: torch.dtype
) -> None:
    inputs = make_inputs(*lengths, heads=3, teacher_dim=40, dtype=dtype)
    one = with_threads(1, results_and_gradients, inputs)
    for threads in (2, 3, 7):
        for name, result in with_threads(threads, results_and_gradients, inputs).items():
            assert_same_bits(result, one[name])


@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH), max_size=5),
    heads=st.integers(1, 4),
    dims=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    dtype=st.sampled_from(DTYPES),
    scale=st.none() | st.floats(-1, 1),
)
def test_any_batch_matches_the_reference(
    cpu_isa: str,
    lengths: list[tuple[int, int]],
    heads: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
    scale: float | None,
) -> None:
    q_lengths, k_lengths = [queries for queries, _ in lengths], [keys for _, keys in lengths]
    inputs = make_inputs(q_lengths, k_lengths, heads, *dims, dtype, outliers=False, student_scale=scale)
    actual = results_and_gradients(inputs)
    expected = {"divergence": exact(inputs)} | exact_gradients(inputs, inputs["teacher_q"][..., 0].float())
    for name, result in actual.items():
        # the terms of a sum may cancel, so that the largest number alone says too little
        precision = torch.float32 if name == "divergence" else dtype
        bound = 32 * max(rounding(expected[name], precision), torch.finfo(precision).eps)
        assert error(result, expected[name]) <= bound, name


@pytest.mark.parametrize("needing", ["student_q", "student_k"])
def test_only_what_needs_a_gradient_gets_one(needing: str) -> None:
    inputs = make_inputs([17, 8], [5, 20])
    expected = gradients(attention_distillation, inputs, torch.ones(25, 2))[needing]
    leaf = inputs[needing].clone().requires_grad_()
    attention_distillation(**inputs | {needing: leaf}).sum().backward()
    assert_same_bits(leaf.grad, expected)


@pytest.mark.parametrize("operand", ["teacher_q", "teacher_k"])
def test_gradients_of_the_teacher_are_refused(operand: str) -> None:
    inputs = make_inputs([3], [4])
    inputs[operand].requires_grad_()
    with pytest.raises(ValueError, match=f"argument '{operand}': expected a constant, .+, got a tensor that requires"):
        attention_distillation(**inputs)
    with torch.no_grad():
        assert attention_distillation(**inputs).isfinite().all()


def test_gradients_are_those_of_the_formula() -> None:
    """gradcheck of the reference by finite differences; the tests above hold the kernels to the reference."""
    inputs = in_dtype(make_inputs([3, 0, 2], [4, 2, 3], 2, 3, 4, outliers=False), torch.float64)

    def function(student_q: Tensor, student_k: Tensor) -> Tensor:
        return attention_distillation_reference(**inputs | {"student_q": student_q, "student_k": student_k})

    assert torch.autograd.gradcheck(function, tuple(inputs[name].requires_grad_() for name in STUDENT))


def test_divergence_is_that_of_torch() -> None:
    """torch's own kl_div between the attention maps of one sample."""
    inputs = in_dtype(make_inputs([7], [5], 3, outliers=False), torch.float64)
    maps = []
    for side in ("teacher", "student"):
        logits = torch.einsum("qhd,khd->qhk", inputs[f"{side}_q"], inputs[f"{side}_k"]) / 4
        maps.append(logits.log_softmax(-1))
    expected = torch.nn.functional.kl_div(maps[1], maps[0], reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(attention_distillation_reference(**inputs), expected)


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs([5], [4])
    leaf = inputs["student_q"].requires_grad_()
    (grad,) = torch.autograd.grad(attention_distillation(**inputs).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention_distillation_reference"):
        grad.sum().backward()
