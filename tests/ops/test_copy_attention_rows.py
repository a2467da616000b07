"""copy_attention_rows against its reference in float64 and against copy_attention, at every level."""

from collections.abc import Callable

import pytest
import torch
from attention_cases import DTYPES, Inputs, assert_same_bits, error, offsets_of
from copy_cases import EXTENDED, NOTHING, SHAPES, WORDS, in_dtype, make_inputs

from vleff.ops import copy_attention, copy_attention_rows, copy_attention_rows_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def row_inputs(name: str, dtype: torch.dtype = torch.float32, words: int = WORDS) -> Inputs:
    inputs = make_inputs(**(SHAPES | NOTHING)[name], dtype=dtype)
    inputs["vocabulary_logits"] = (3 * torch.randn(len(inputs["queries"]), words)).to(dtype)
    return without_targets(inputs) | {"extended_size": words + EXTENDED - WORDS}


def without_targets(inputs: Inputs) -> Inputs:
    return {name: x for name, x in inputs.items() if name not in ("targets", "generate_log_probs")}


def exact_rows(inputs: Inputs) -> torch.Tensor:
    doubled = in_dtype(inputs | {"generate_log_probs": torch.zeros(1)}, torch.float64)
    doubled["vocabulary_logits"] = inputs["vocabulary_logits"].double()
    return copy_attention_rows_reference(**without_targets(doubled))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("words", [1, WORDS, 1003])
@pytest.mark.parametrize("name", [*SHAPES, *NOTHING])
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, name: str, words: int, dtype: torch.dtype) -> None:
    inputs = row_inputs(name, dtype, words)
    for memory in ("question", "paragraph"):
        inputs[memory] = inputs[memory]._replace(ids=inputs[memory].ids % inputs["extended_size"])
    rows, expected = copy_attention_rows(**inputs), exact_rows(inputs)
    assert rows.dtype == torch.float32 and rows.shape == expected.shape
    if rows.numel():
        plain_error = error(copy_attention_rows_reference(**inputs), expected)
        largest = max(1, expected[expected > -torch.inf].abs().max())
        assert error(rows, expected) <= 2 * plain_error + 4 * torch.finfo(torch.float32).eps * largest
        torch.testing.assert_close(rows.exp().sum(1), torch.ones(len(rows)), atol=1e-4, rtol=0)


def test_rows_hold_what_copy_attention_says_of_targets(cpu_isa: str) -> None:
    inputs = make_inputs([(5, 8, 30), (3, 17, 16), (2, 0, 4)], 40)
    logits = torch.randn(10, WORDS)
    rows = copy_attention_rows(**without_targets(inputs), vocabulary_logits=logits, extended_size=EXTENDED)
    whole = torch.nn.functional.pad(logits.log_softmax(1), (0, EXTENDED - WORDS), value=-torch.inf)
    for word in range(EXTENDED):
        options = {"targets": torch.full((10,), word), "generate_log_probs": whole[:, word]}
        of_word = copy_attention(**inputs | options)[0]
        assert error(rows[:, word], of_word) <= 1e-5 * max(1, of_word[of_word > -torch.inf].abs().max())


def test_logarithms_far_below_the_smallest_number(cpu_isa: str) -> None:
    inputs = row_inputs("width 17")
    inputs["scale"] = 30.0
    inputs["vocabulary_logits"] = inputs["vocabulary_logits"] * 100
    rows, expected = copy_attention_rows(**inputs), exact_rows(inputs)
    assert expected[expected > -torch.inf].min() < -500
    assert error(rows, expected) <= 1e-6 * expected[expected > -torch.inf].abs().max()


def test_beams_share_their_memory_and_samples_have_any_number_of_them(cpu_isa: str) -> None:
    """A row does not depend on how many beams its sample has, nor on the other samples, bit for bit."""
    inputs = row_inputs("width 300")
    rows = copy_attention_rows(**inputs)
    kept = torch.tensor([0, 3, 11, 15])  # of 12 and 7 rows: samples keep 3 and 1
    fewer = inputs | {name: inputs[name][kept] for name in ("queries", "gate_logits", "vocabulary_logits")}
    fewer |= {"query_offsets": offsets_of([3, 1]), "max_queries": 3}
    assert_same_bits(copy_attention_rows(**fewer), rows[kept])
    fewer |= {"query_offsets": offsets_of([0, 1]), "max_queries": 1}
    fewer |= {name: inputs[name][15:16] for name in ("queries", "gate_logits", "vocabulary_logits")}
    assert_same_bits(copy_attention_rows(**fewer), rows[15:16])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(cpu_isa: str, with_threads: Callable, dtype: torch.dtype) -> None:
    inputs = row_inputs("width 17", dtype)
    one = with_threads(1, lambda: copy_attention_rows(**inputs))
    for threads in (2, 3, 7):
        assert_same_bits(with_threads(threads, lambda: copy_attention_rows(**inputs)), one)


def test_rows_have_no_gradient() -> None:
    inputs = row_inputs("width 17")
    inputs["queries"].requires_grad_()
    assert not copy_attention_rows(**inputs).requires_grad
