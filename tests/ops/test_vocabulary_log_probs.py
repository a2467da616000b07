"""vocabulary_log_probs and its gradients against the reference in float64, at every instruction-set level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import DTYPES, assert_same_bits, error
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from vocabulary_cases import make_inputs

from vleff.ops import vocabulary_log_probs, vocabulary_log_probs_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DRAWS = 3

# rows, width, words: below, at and above the kernels' blocks, and off the vector widths
SHAPES = [(1, 1, 1), (3, 17, 5), (33, 64, 119), (7, 300, 1003), (256, 40, 121), (300, 24, 240), (530, 9, 2500)]


def in_double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x if x is None or name == "targets" else x.double() for name, x in inputs.items()}


def gradients(function: Callable[..., Tensor], inputs: dict[str, Any], grad: Tensor) -> dict[str, Tensor]:
    """Gradients of <result, grad>; results of -inf are left out."""
    names = [name for name in ("hidden", "weight", "bias") if inputs[name] is not None]
    leaves = {name: inputs[name].detach().requires_grad_() for name in names}
    result = function(**inputs | leaves)
    loss = (result.masked_fill(result == -torch.inf, 0) * grad.to(result.dtype)).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_accurate(results: list[Tensor], expected: list[Tensor], plain: list[Tensor]) -> None:
    """At most twice plain torch's error, or 2e-6 of the largest number: float32 sums run in order of the width, where
    a library's are split, with half the error."""
    ours, theirs = (max(map(error, found, expected)) for found in (results, plain))
    largest = max(0.1, *(e[e > -torch.inf].abs().max().item() if (e > -torch.inf).any() else 0.0 for e in expected))
    assert ours <= max(2 * theirs, 2e-6 * largest), f"error {ours:.3g}, plain torch {theirs:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    draws = [make_inputs(*shape, dtype, bias=draw > 0) for draw in range(DRAWS)]
    results = [vocabulary_log_probs(**inputs) for inputs in draws]
    assert all(result.dtype == torch.float32 for result in results)
    expected = [vocabulary_log_probs_reference(**in_double(inputs)) for inputs in draws]
    plain = [vocabulary_log_probs_reference(**inputs) for inputs in draws]
    assert_accurate(results, expected, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_error_is_at_most_twice_plain_torch(
    cpu_isa: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    draws = [(make_inputs(*shape, dtype), torch.randn(shape[0])) for _ in range(DRAWS)]
    actual = [gradients(vocabulary_log_probs, *draw) for draw in draws]
    expected = [gradients(vocabulary_log_probs_reference, in_double(inputs), grad) for inputs, grad in draws]
    plain = [gradients(vocabulary_log_probs_reference, *draw) for draw in draws]
    for name in ("hidden", "weight", "bias"):
        results = [found[name] for found in actual]
        assert all(result.dtype == dtype for result in results)
        if shape[2] == 1:  # of one word the probability is 1, whatever it is made of
            assert all(result.abs().max() <= 1e-3 for result in results)
        else:
            of_name = [[found[name] for found in rows] for rows in (expected, plain)]
            assert_accurate(results, *of_name)


def test_gradient_without_bias(cpu_isa: str) -> None:
    inputs, grad = make_inputs(33, 40, 250, bias=False), torch.randn(33)
    expected = gradients(vocabulary_log_probs_reference, in_double(inputs), grad)
    for name, gradient in gradients(vocabulary_log_probs, inputs, grad).items():
        assert error(gradient, expected[name]) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows(cpu_isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(0, 16, 200, dtype)
    assert vocabulary_log_probs(**inputs).shape == (0,)
    for name, gradient in gradients(vocabulary_log_probs, inputs, torch.ones(0)).items():
        assert gradient.shape == inputs[name].shape and (gradient == 0).all()


def test_rows_without_a_word_have_no_gradient(cpu_isa: str) -> None:
    inputs = make_inputs(9, 16, 200)
    inputs["targets"] = torch.full((9,), 200, dtype=torch.int32)
    leaves = {name: inputs[name].requires_grad_() for name in ("hidden", "weight", "bias")}
    result = vocabulary_log_probs(**inputs)
    assert (result == -torch.inf).all()
    result.backward(torch.full((9,), torch.nan))
    assert all((leaf.grad == 0).all() for leaf in leaves.values())


def test_huge_logits_stay_finite(cpu_isa: str) -> None:
    inputs = make_inputs(20, 64, 500)
    inputs["weight"] *= 100
    inputs["targets"] %= 500
    result, expected = vocabulary_log_probs(**inputs), vocabulary_log_probs_reference(**in_double(inputs))
    assert expected.min() < -1000
    assert_accurate([result], [expected], [vocabulary_log_probs_reference(**inputs)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_depends_on_nothing_else_and_threads_change_no_bit(
    cpu_isa: str, with_threads: Callable, dtype: torch.dtype
) -> None:
    inputs, grad = make_inputs(290, 24, 2100, dtype), torch.randn(290)
    one = with_threads(1, vocabulary_log_probs, *inputs.values())
    one_gradients = with_threads(1, gradients, vocabulary_log_probs, inputs, grad)
    for threads in (2, 3, 7):
        assert_same_bits(with_threads(threads, vocabulary_log_probs, *inputs.values()), one)
        for name, gradient in with_threads(threads, gradients, vocabulary_log_probs, inputs, grad).items():
            assert_same_bits(gradient, one_gradients[name])
    for rows in (slice(0, 1), slice(5, 22), slice(255, 290)):
        few = inputs | {name: inputs[name][rows] for name in ("hidden", "targets")}
        assert_same_bits(vocabulary_log_probs(**few), one[rows])
        few_gradients = gradients(vocabulary_log_probs, few, grad[rows])
        assert_same_bits(few_gradients["hidden"], one_gradients["hidden"][rows])


@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 70),
    words=st.integers(1, 400),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
)
def test_any_shape_matches_the_reference(
    cpu_isa: str, rows: int, width: int, words: int, dtype: torch.dtype, bias: bool
) -> None:
    inputs = make_inputs(rows, width, words, dtype, bias)
    result, expected = vocabulary_log_probs(**inputs), vocabulary_log_probs_reference(**in_double(inputs))
    assert error(result, expected) <= 1e-4


def test_strides_change_nothing() -> None:
    inputs = make_inputs(9, 16, 40)
    strided = {name: x.repeat_interleave(2, -1)[..., ::2] for name, x in inputs.items()}
    assert_same_bits(vocabulary_log_probs(**strided), vocabulary_log_probs(**inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, bias: bool) -> None:
    inputs = make_inputs(5, 16, 40, dtype, bias)
    inputs["targets"] %= 40
    leaves = [x if x is None or x.dtype == torch.int64 else x.clone().requires_grad_() for x in inputs.values()]
    torch.library.opcheck(torch.ops.vleff.vocabulary_log_probs.default, tuple(leaves))
    log_probs, statistics = torch.ops.vleff.vocabulary_log_probs(*inputs.values())
    backward = torch.ops.vleff.vocabulary_log_probs_backward.default
    torch.library.opcheck(backward, (log_probs, *inputs.values(), statistics))


@pytest.mark.parametrize("bias", [False, True])
def test_fake_results_have_the_shapes_of_real_ones(bias: bool) -> None:
    inputs = make_inputs(5, 16, 40, torch.bfloat16, bias)

    def all_results(inputs: dict[str, Any]) -> list[Tensor]:
        return [vocabulary_log_probs(**inputs), *gradients(vocabulary_log_probs, inputs, torch.ones(5)).values()]

    real = all_results(inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = all_results({name: x if x is None else mode.from_tensor(x) for name, x in inputs.items()})
    for real_result, fake_result in zip(real, fake, strict=True):
        assert (fake_result.shape, fake_result.dtype) == (real_result.shape, real_result.dtype)
        assert fake_result.stride() == real_result.stride()


def test_compiles_once_for_all_row_counts() -> None:
    torch._dynamo.reset()

    def layer(inputs: dict[str, Any]) -> Tensor:
        return vocabulary_log_probs(**inputs | {"hidden": inputs["hidden"] * 2}) + 1

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for number, rows in enumerate((9, 33, 5)):
        inputs = make_inputs(rows, 16, 40)
        inputs["hidden"].requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(inputs)
            gradient = torch.autograd.grad(actual[actual > -torch.inf].sum(), inputs["hidden"])
        expected = layer(inputs)
        assert_same_bits(actual, expected)
        eager = torch.autograd.grad(expected[expected > -torch.inf].sum(), inputs["hidden"])
        torch.testing.assert_close(gradient, eager)


def test_flops_and_profiler() -> None:
    inputs = make_inputs(5, 16, 40)
    inputs["hidden"].requires_grad_()
    with FlopCounterMode(display=False) as counter, torch.profiler.profile() as profile:
        vocabulary_log_probs(**inputs).sum().backward()
    assert counter.get_total_flops() == 4 * 2 * 5 * 16 * 40
    names = {event.key for event in profile.key_averages()}
    assert {"vleff::vocabulary_log_probs", "vleff::vocabulary_log_probs_backward"} <= names


def test_gradients_are_those_of_the_formula() -> None:
    inputs = in_double(make_inputs(4, 3, 6))
    inputs["targets"] %= 6
    leaves = tuple(inputs[name].requires_grad_() for name in ("hidden", "weight", "bias"))
    assert torch.autograd.gradcheck(lambda *x: vocabulary_log_probs_reference(*x, inputs["targets"]), leaves)


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs(4, 3, 6)
    leaf = inputs["hidden"].requires_grad_()
    (grad,) = torch.autograd.grad(vocabulary_log_probs(**inputs).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="vocabulary_log_probs_reference"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "argument, wrong",
    [
        ("hidden", torch.zeros(5, 16).double()),
        ("hidden", torch.zeros(16)),
        ("hidden", torch.zeros(5, 0)),
        ("weight", torch.zeros(40, 15)),
        ("weight", torch.zeros(40, 16).bfloat16()),
        ("weight", torch.zeros(0, 16)),
        ("bias", torch.zeros(39)),
        ("bias", torch.zeros(40).half()),
        ("targets", torch.zeros(4, dtype=torch.int64)),
        ("targets", torch.zeros(5)),
        ("targets", torch.tensor([0, 1, 2, -1, 3])),
        ("targets", torch.tensor([0, 1, 2, -(2**40), 3])),
    ],
)
def test_bad_argument(argument: str, wrong: Tensor) -> None:
    inputs = make_inputs(5, 16, 40) | {argument: wrong}
    with pytest.raises(RuntimeError, match=rf"vocabulary_log_probs: argument '{argument}': expected .+, got .+"):
        vocabulary_log_probs(**inputs)
    rest = {"grad_log_probs": torch.zeros(5), "statistics": torch.zeros(5, 2)}
    with pytest.raises(RuntimeError, match=rf"log_probs_backward: argument '{argument}': expected .+, got .+"):
        torch.ops.vleff.vocabulary_log_probs_backward(**inputs | rest)


@pytest.mark.parametrize("argument", ["grad_log_probs", "statistics"])
@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(5).double()], ids=str)
def test_bad_gradient(argument: str, wrong: Tensor) -> None:
    inputs = make_inputs(5, 16, 40) | {"grad_log_probs": torch.zeros(5), "statistics": torch.zeros(5, 2)}
    with pytest.raises(RuntimeError, match=rf"log_probs_backward: argument '{argument}': expected .+, got .+"):
        torch.ops.vleff.vocabulary_log_probs_backward(**inputs | {argument: wrong})
