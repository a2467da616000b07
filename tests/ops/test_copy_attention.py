"""copy_attention and its gradients against the reference in float64, at every instruction-set level."""

from collections.abc import Callable

import pytest
import torch
from attention_cases import DTYPES, assert_close, assert_same_bits, assert_within_twice_plain, error
from copy_cases import (
    EXTENDED,
    LEAVES,
    NOTHING,
    SHAPES,
    WORDS,
    exact,
    exact_gradients,
    gradients,
    in_dtype,
    inputs_far_below,
    make_inputs,
    map_floats,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vleff.ops import CopyMemory, copy_attention, copy_attention_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DRAWS = 3
LENGTH = st.integers(0, 6) | st.integers(0, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    draws = [make_inputs(**SHAPES[name], dtype=dtype, coverage=True) for _ in range(DRAWS)]
    results = [copy_attention(**inputs) for inputs in draws]
    plain = [copy_attention_reference(**inputs) for inputs in draws]
    expected = [exact(inputs) for inputs in draws]
    for number in range(2):
        assert all(result[number].dtype == torch.float32 for result in results)
        results_of, plain_of, expected_of = ([r[number] for r in rows] for rows in (results, plain, expected))
        assert_within_twice_plain(results_of, expected_of, plain_of, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_match_the_reference(cpu_isa: str, name: str, coverage: bool, dtype: torch.dtype) -> None:
    inputs = make_inputs(**SHAPES[name], dtype=dtype, coverage=coverage)
    grad = torch.randn(inputs["targets"].shape)
    coverage_grad = torch.randn(inputs["targets"].shape) if coverage else None
    actual = gradients(copy_attention, inputs, grad, coverage_grad)
    expected = exact_gradients(inputs, grad, coverage_grad)
    for leaf in LEAVES:
        value = inputs[leaf]
        assert actual[leaf].dtype == (value.keys if isinstance(value, CopyMemory) else value).dtype
        # the terms of a gradient may cancel
        largest = max(expected[leaf].abs().max().item() if expected[leaf].numel() else 0.0, 0.1)
        precision = torch.float32 if leaf == "generate_log_probs" else dtype
        assert error(actual[leaf], expected[leaf]) <= 16 * torch.finfo(precision).eps * largest, leaf


@pytest.mark.parametrize("name", [*NOTHING, "empty samples"])
def test_empty_samples(cpu_isa: str, name: str) -> None:
    inputs = make_inputs(**(SHAPES | NOTHING)[name], coverage=True)
    for actual, expected in zip(copy_attention(**inputs), exact(inputs), strict=True):
        assert_close(actual, expected, torch.float32)
    grads = torch.randn(2, len(inputs["targets"]))
    expected_gradients = exact_gradients(inputs, *grads)
    for leaf, gradient in gradients(copy_attention, inputs, *grads).items():
        assert_close(gradient, expected_gradients[leaf], torch.float32, roundings=64)


def test_probabilities_of_all_words_sum_to_one(cpu_isa: str) -> None:
    """Also where a memory has no positions: its gate is closed."""
    logits = torch.randn(WORDS).log_softmax(0)
    for lengths in ((1, 4, 9), (1, 0, 9), (1, 4, 0), (1, 0, 0)):
        inputs = make_inputs([lengths])
        total = 0.0
        for word in range(EXTENDED):
            generated = logits[word : word + 1] if word < WORDS else torch.tensor([-torch.inf])
            options = {"targets": torch.tensor([word]), "generate_log_probs": generated}
            total += copy_attention(**inputs | options)[0].exp().item()
        assert total == pytest.approx(1, abs=1e-5)


def test_logarithms_far_below_the_smallest_number(cpu_isa: str) -> None:
    inputs = inputs_far_below()
    log_probs = copy_attention(**inputs)[0]
    expected = exact(inputs)[0]
    assert (expected < -450).all()
    torch.testing.assert_close(log_probs.double(), expected, rtol=1e-6, atol=0)
    grad = torch.tensor([1.0, -2.0, 3.0])
    actual, reference = gradients(copy_attention, inputs, grad), exact_gradients(inputs, grad)
    for leaf in LEAVES:
        assert_close(actual[leaf], reference[leaf], torch.float32, roundings=64)


def test_impossible_targets_have_no_gradient(cpu_isa: str) -> None:
    inputs = make_inputs([(4, 5, 6)], coverage=True)
    inputs["targets"] = torch.full((4,), EXTENDED + 5)
    inputs["generate_log_probs"] = torch.full((4,), -torch.inf)
    log_probs, coverage_loss = copy_attention(**inputs)
    assert (log_probs == -torch.inf).all() and coverage_loss.isfinite().all()
    found: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        found.append(x.detach().requires_grad_())
        return found[-1]

    copy_attention(**map_floats(inputs, leaf))[0].sum().backward()
    assert all((x.grad == 0).all() for x in found)


def test_coverage_of_repeated_queries(cpu_isa: str) -> None:
    """Equal rows: each finds covered just what the ones before it attend to, so the loss is 1 a memory."""
    inputs = make_inputs([(5, 4, 9)], coverage=True)
    inputs["queries"] = inputs["queries"][:1].expand(5, -1)
    torch.testing.assert_close(copy_attention(**inputs)[1], torch.tensor([0.0, 2.0, 2.0, 2.0, 2.0]))


def test_coverage_is_empty_unless_asked_for() -> None:
    inputs = make_inputs([(4, 5, 6)])
    without, with_coverage = (copy_attention(**inputs, coverage=asked) for asked in (False, True))
    assert without[1].shape == (0,) and not without[1].requires_grad
    assert_same_bits(without[0], with_coverage[0])


def test_dtypes_of_targets_and_strides_change_nothing(cpu_isa: str) -> None:
    inputs = make_inputs([(7, 5, 30), (3, 2, 9)], width=40)
    expected = copy_attention(**inputs)[0]
    strided = map_floats(inputs, lambda x: x.repeat_interleave(2, -1)[..., ::2])
    strided["targets"] = inputs["targets"].int()
    assert not strided["queries"].is_contiguous()
    assert_same_bits(copy_attention(**strided)[0], expected)


def results_and_gradients(inputs: dict) -> dict[str, Tensor]:
    """Results and gradients, for output gradients that are functions of the inputs' rows."""
    log_probs, coverage_loss = copy_attention(**inputs)
    grad, coverage_grad = inputs["gate_logits"][:, 0].float(), inputs["gate_logits"][:, 1].float()
    results = {"log_probs": log_probs, "coverage_loss": coverage_loss}
    return results | gradients(copy_attention, inputs, grad, coverage_grad)


def sample_alone(inputs: dict, sample: int) -> tuple[dict, dict[str, slice]]:
    """The batch of this one sample, and where its rows are in the whole batch."""
    rows = slice(*inputs["query_offsets"][sample : sample + 2].tolist())
    alone = {"query_offsets": torch.tensor([0, rows.stop - rows.start], dtype=torch.int32)}
    alone |= {name: inputs[name][rows] for name in ("queries", "gate_logits", "generate_log_probs", "targets")}
    places = dict.fromkeys(("log_probs", "coverage_loss", *LEAVES), rows)
    for name in ("question", "paragraph"):
        memory = inputs[name]
        where = slice(*memory.offsets[sample : sample + 2].tolist())
        length = where.stop - where.start
        alone[name] = CopyMemory(memory.keys[where], memory.ids[where], torch.tensor([0, length]).int(), length)
        places[name] = where
    return inputs | alone, places


@settings(max_examples=10)
@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH, LENGTH), min_size=2, max_size=17),
    width=st.sampled_from([1, 5, 16, 40, 150]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_sample_does_not_depend_on_its_batch_mates(
    cpu_isa: str, lengths: list[tuple[int, int, int]], width: int, dtype: torch.dtype
) -> None:
    inputs = make_inputs(lengths, width, dtype, coverage=True)
    together = results_and_gradients(inputs)
    for sample in range(len(lengths)):
        alone, places = sample_alone(inputs, sample)
        for name, result in results_and_gradients(alone).items():
            assert_same_bits(result, together[name][places[name]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(cpu_isa: str, with_threads: Callable, dtype: torch.dtype) -> None:
    lengths = [(5, 9, 80), (0, 3, 2), (40, 12, 33), (1, 0, 7), (9, 4, 0)]
    inputs = make_inputs(lengths, 40, dtype, coverage=True)
    one = with_threads(1, results_and_gradients, inputs)
    for threads in (2, 3, 7):
        for name, result in with_threads(threads, results_and_gradients, inputs).items():
            assert_same_bits(result, one[name])


@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH, LENGTH), max_size=4),
    width=st.integers(1, 100),
    dtype=st.sampled_from(DTYPES),
    scale=st.none() | st.floats(-0.5, 0.5),
    coverage=st.booleans(),
)
def test_any_batch_matches_the_reference(
    cpu_isa: str,
    lengths: list[tuple[int, int, int]],
    width: int,
    dtype: torch.dtype,
    scale: float | None,
    coverage: bool,
) -> None:
    inputs = make_inputs(lengths, width, dtype, scale=scale, coverage=coverage)
    for actual, expected in zip(copy_attention(**inputs), exact(inputs), strict=True):
        assert error(actual, expected) <= 32 * torch.finfo(torch.float32).eps * max(
            1.0, expected[expected > -torch.inf].abs().max().item() if (expected > -torch.inf).any() else 0.0
        )


def test_gradients_are_those_of_the_formula() -> None:
    """gradcheck of the reference by finite differences; the tests above hold the kernels to the reference."""
    inputs = in_dtype(make_inputs([(3, 2, 4), (0, 1, 1), (2, 0, 3)], 3, coverage=True), torch.float64)
    inputs["generate_log_probs"] = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.5], dtype=torch.float64)
    leaves: list[Tensor] = []
    map_floats(inputs, lambda x: leaves.append(x.requires_grad_()) or x)

    def function(*operands: Tensor) -> tuple[Tensor, Tensor]:
        remaining = iter(operands)
        return copy_attention_reference(**map_floats(inputs, lambda _: next(remaining)))

    assert torch.autograd.gradcheck(function, tuple(leaves))


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs([(5, 4, 3)])
    leaf = inputs["gate_logits"].requires_grad_()
    (grad,) = torch.autograd.grad(copy_attention(**inputs)[0].exp().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="copy_attention_reference"):
        grad.sum().backward()
