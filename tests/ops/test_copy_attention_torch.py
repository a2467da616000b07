"""copy_attention and copy_attention_rows inside torch: opcheck, fake tensors, torch.compile, FLOPs; bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import DTYPES, Inputs, assert_same_bits
from copy_cases import EXTENDED, NOTHING, WORDS, make_inputs, map_floats
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import CopyMemory, copy_attention, copy_attention_flops, copy_attention_rows

LENGTHS = [(5, 3, 7), (4, 2, 8)]


def operands(inputs: Inputs) -> list[Any]:
    """The arguments of the compiled op up to the gate."""
    names = ("queries", "query_offsets", "max_queries", "question", "paragraph", "gate_logits")
    flat: list[Any] = []
    for value in (inputs[name] for name in names):
        flat += value if isinstance(value, CopyMemory) else [value]
    return flat


def row_inputs(**options: Any) -> Inputs:
    inputs = make_inputs(LENGTHS, **options)
    logits = torch.randn(9, WORDS).to(inputs["queries"].dtype)
    kept = {name: x for name, x in inputs.items() if name not in ("targets", "generate_log_probs")}
    return kept | {"vocabulary_logits": logits, "extended_size": EXTENDED}


@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, coverage: bool) -> None:
    inputs = make_inputs(LENGTHS, dtype=dtype)
    inputs["generate_log_probs"] = -torch.rand(9)
    options = {"scale": 0.3}
    leaves = map_floats(inputs, lambda x: x.clone().requires_grad_())
    words = ("generate_log_probs", "targets")
    op = torch.ops.vleff.copy_attention.default
    arguments = (*operands(leaves), *(leaves[name] for name in words))
    torch.library.opcheck(op, arguments, options | {"coverage": coverage})
    arguments = (*operands(inputs), *(inputs[name] for name in words))
    log_probs, coverage_loss, statistics = op(*arguments, **options, coverage=coverage)
    backward = torch.ops.vleff.copy_attention_backward.default
    grads = (log_probs, coverage_loss if coverage else None, log_probs, statistics)
    torch.library.opcheck(backward, (*grads, *arguments), options)


def test_opcheck_of_rows() -> None:
    inputs = row_inputs()
    arguments = (*operands(inputs), inputs["vocabulary_logits"], EXTENDED)
    torch.library.opcheck(torch.ops.vleff.copy_attention_rows.default, arguments, {"scale": 0.3})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coverage", [False, True])
def test_fake_results_have_the_shapes_of_real_ones(dtype: torch.dtype, coverage: bool) -> None:
    inputs = make_inputs(LENGTHS, dtype=dtype, coverage=coverage)
    rows = row_inputs(dtype=dtype)

    def all_results(inputs: Inputs, rows: Inputs) -> list[Tensor]:
        leaves: list[Tensor] = []
        learning = map_floats(inputs, lambda x: leaves.append(x.detach().requires_grad_()) or leaves[-1])
        log_probs, coverage_loss = copy_attention(**learning)
        loss = log_probs.sum() + (coverage_loss.sum() if coverage else 0)
        return [log_probs, coverage_loss, *torch.autograd.grad(loss, leaves), copy_attention_rows(**rows)]

    real = all_results(inputs, rows)
    with FakeTensorMode() as mode:
        fake = all_results(*_pytree.tree_map_only(Tensor, mode.from_tensor, (inputs, rows)))
    for real_result, fake_result in zip(real, fake, strict=True):
        assert (fake_result.shape, fake_result.dtype) == (real_result.shape, real_result.dtype)
        assert fake_result.stride() == real_result.stride()


def layer(inputs: Inputs) -> tuple[Tensor, Tensor]:
    log_probs, coverage_loss = copy_attention(**inputs | {"queries": inputs["queries"] * 2})
    return log_probs + 1, coverage_loss


# torch.compile gives sizes 0 and 1 graphs of their own, and at first takes equal sizes for one
BATCHES = [
    [(2, 5, 20), (4, 3, 8), (5, 4, 9)],
    [(7, 2, 9), (1, 6, 30), (1, 9, 2), (4, 4, 4)],
    [(0, 5, 5), (8, 0, 20)],
]


@pytest.mark.parametrize("coverage", [False, True])
def test_compiles_once_for_all_token_counts(coverage: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for number, lengths in enumerate(BATCHES):
        inputs = make_inputs(lengths, coverage=coverage)
        inputs["generate_log_probs"] = -torch.rand(len(inputs["targets"]))
        leaves: list[Tensor] = []
        inputs = map_floats(inputs, lambda x, leaves=leaves: leaves.append(x.requires_grad_()) or x)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(inputs)
            gradient = torch.autograd.grad(actual[0].sum() + actual[1].sum(), leaves)
        expected = layer(inputs)
        for result, eager in zip(actual, expected, strict=True):
            assert_same_bits(result, eager)
        for result, eager in zip(
            gradient, torch.autograd.grad(expected[0].sum() + expected[1].sum(), leaves), strict=True
        ):
            torch.testing.assert_close(result, eager)


@pytest.mark.parametrize("name", NOTHING)
def test_no_tokens_under_compile(name: str) -> None:
    torch._dynamo.reset()
    inputs = make_inputs(**NOTHING[name])
    assert_same_bits(torch.compile(layer, fullgraph=True)(inputs)[0], layer(inputs)[0])


def test_rows_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda inputs: copy_attention_rows(**inputs), fullgraph=True, dynamic=True)
    for number in range(3):
        inputs = row_inputs() | {"extended_size": EXTENDED + number}
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(inputs)
        assert_same_bits(actual, copy_attention_rows(**inputs))


def test_flops_count_every_pair() -> None:
    inputs = make_inputs([(3, 5, 7), (0, 2, 9), (4, 0, 1)], 40)
    inputs["queries"].requires_grad_()
    forward = 2 * 40 * (3 * (5 + 7) + 4 * 1)
    assert copy_attention_flops([3, 0, 4], [5, 2, 0], [7, 9, 1], 40) == forward
    with FlopCounterMode(display=False) as counter:
        log_probs, _ = copy_attention(**inputs)
        assert counter.get_total_flops() == forward
        log_probs.sum().backward()
    assert counter.get_total_flops() == 4 * forward
    with FlopCounterMode(display=False) as counter:
        copy_attention_rows(**row_inputs())
    assert counter.get_total_flops() == copy_attention_flops([5, 4], [3, 2], [7, 8], 16)


def test_profiler_names_forward_and_backward() -> None:
    inputs = make_inputs(LENGTHS)
    inputs["queries"].requires_grad_()
    with torch.profiler.profile() as profile:
        copy_attention(**inputs)[0].sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"vleff::copy_attention", "vleff::copy_attention_backward"} <= names


def of_memory(memory: str, field: str, change: Callable[[Any], Any]) -> Callable[[Inputs], Inputs]:
    return lambda i: {memory: i[memory]._replace(**{field: change(getattr(i[memory], field))})}


def of(name: str, change: Callable[[Tensor], Any]) -> Callable[[Inputs], Inputs]:
    return lambda i: {name: change(i[name])}


SHARED: list[tuple[str, Callable[[Inputs], Inputs]]] = [
    ("queries", of("queries", Tensor.double)),
    ("queries", of("queries", lambda x: x[0])),
    ("queries", of("queries", lambda x: x[:, :0])),
    ("query_offsets", of("query_offsets", Tensor.long)),
    ("query_offsets", of("query_offsets", lambda x: x[:0])),
    ("query_offsets", of("query_offsets", lambda x: x.flip(0))),
    ("query_offsets", of("query_offsets", lambda x: torch.tensor([0, 5, 8]).int())),
    ("max_queries", lambda i: {"max_queries": 4}),
    ("question_keys", of_memory("question", "keys", Tensor.bfloat16)),
    ("question_keys", of_memory("question", "keys", lambda x: x[:, :8])),
    ("question_ids", of_memory("question", "ids", Tensor.long)),
    ("question_ids", of_memory("question", "ids", lambda x: x[1:])),
    ("question_ids", of_memory("question", "ids", lambda x: x - 100)),
    ("question_offsets", of_memory("question", "offsets", lambda x: x[1:])),
    ("max_question", of_memory("question", "max_length", lambda x: x - 1)),
    ("paragraph_keys", of_memory("paragraph", "keys", lambda x: x[..., None])),
    ("paragraph_ids", of_memory("paragraph", "ids", lambda x: x - 100)),
    ("paragraph_offsets", of_memory("paragraph", "offsets", lambda x: x + 1)),
    ("paragraph_offsets", of_memory("paragraph", "offsets", lambda x: torch.tensor([0, 90, 15]).int())),
    ("max_paragraph", of_memory("paragraph", "max_length", lambda x: -1)),
    ("gate_logits", of("gate_logits", lambda x: x[:, :2])),
    ("gate_logits", of("gate_logits", Tensor.half)),
    ("scale", lambda i: {"scale": float("inf")}),
]
OF_TARGETS = [
    ("generate_log_probs", of("generate_log_probs", Tensor.bfloat16)),
    ("generate_log_probs", of("generate_log_probs", lambda x: x[1:])),
    ("targets", of("targets", lambda x: x - 100)),
    ("targets", of("targets", Tensor.float)),
    ("targets", of("targets", lambda x: x[:, None])),
]
OF_ROWS = [
    ("vocabulary_logits", of("vocabulary_logits", lambda x: x[1:])),
    ("vocabulary_logits", of("vocabulary_logits", lambda x: x[:, :0])),
    ("vocabulary_logits", of("vocabulary_logits", Tensor.half)),
    ("extended_size", lambda i: {"extended_size": WORDS - 1, "vocabulary_logits": torch.zeros(9, EXTENDED + 9)}),
    ("question_ids", of_memory("question", "ids", lambda x: x + EXTENDED)),
    ("paragraph_ids", of_memory("paragraph", "ids", lambda x: x + EXTENDED)),
]


def message(op: str, argument: str) -> str:
    return rf"{op}: argument '{argument}': expected .+, got .+"


@pytest.mark.parametrize("argument, change", [*SHARED, *OF_TARGETS])
def test_bad_argument(argument: str, change: Callable[[Inputs], Inputs]) -> None:
    inputs = make_inputs(LENGTHS)
    with pytest.raises(RuntimeError, match=message("copy_attention", argument)):
        copy_attention(**inputs | change(inputs))


@pytest.mark.parametrize("argument, change", [*SHARED, *OF_ROWS])
def test_bad_argument_of_rows(argument: str, change: Callable[[Inputs], Inputs]) -> None:
    inputs = row_inputs()
    inputs |= {name: inputs[name]._replace(ids=inputs[name].ids % (WORDS - 1)) for name in ("question", "paragraph")}
    with pytest.raises(RuntimeError, match=message("copy_attention_rows", argument)):
        copy_attention_rows(**inputs | change(inputs))


@pytest.mark.parametrize("argument, change", [*SHARED, *OF_TARGETS])
def test_bad_argument_of_the_compiled_backward(argument: str, change: Callable[[Inputs], Inputs]) -> None:
    inputs = make_inputs(LENGTHS)
    words = ("generate_log_probs", "targets")
    log_probs, _, statistics = torch.ops.vleff.copy_attention(
        *operands(inputs), *(inputs[name] for name in words), scale=0.3
    )
    inputs |= change(inputs)
    with pytest.raises(RuntimeError, match=message("copy_attention_backward", argument)):
        torch.ops.vleff.copy_attention_backward(
            *(log_probs, None, log_probs, statistics),
            *operands(inputs),
            *(inputs[name] for name in words),
            scale=inputs.get("scale", 0.3),
        )


@pytest.mark.parametrize(
    "number, argument", list(enumerate(["grad_log_probs", "grad_coverage_loss", "log_probs", "statistics"]))
)
@pytest.mark.parametrize("wrong", [torch.zeros(8), torch.zeros(9, 2), torch.zeros(9).double()], ids=str)
def test_bad_gradient(number: int, argument: str, wrong: Tensor) -> None:
    inputs = make_inputs(LENGTHS)
    arguments = [*operands(inputs), inputs["generate_log_probs"], inputs["targets"]]
    log_probs, _, statistics = torch.ops.vleff.copy_attention(*arguments, scale=0.3)
    grads = [log_probs, log_probs, log_probs, statistics]
    grads[number] = wrong
    with pytest.raises(RuntimeError, match=message("copy_attention_backward", argument)):
        torch.ops.vleff.copy_attention_backward(*grads, *arguments, scale=0.3)


@given(ids=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-1, EXTENDED), min_size=5, max_size=5))
def test_any_ids_are_used_or_refused(ids: list[int]) -> None:
    inputs = row_inputs()
    inputs["question"] = inputs["question"]._replace(ids=torch.tensor(ids, dtype=torch.int32))
    if all(0 <= word < EXTENDED for word in ids):
        assert not copy_attention_rows(**inputs).isnan().any()
    else:
        with pytest.raises(RuntimeError, match=message("copy_attention_rows", "question_ids")):
            copy_attention_rows(**inputs)
