"""attention_distillation inside torch: opcheck, fake tensors, torch.compile, FLOP counts, profiler; bad input."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from attention_cases import DTYPES, Inputs, assert_same_bits, offsets_of
from distillation_cases import NOTHING, STUDENT, make_inputs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import attention_distillation, attention_distillation_flops

SCALES = {"teacher_scale": 0.3, "student_scale": 0.5}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    inputs = make_inputs([5, 4], [7, 8], dtype=dtype)
    operands = [inputs[name] for name in ("teacher_q", "teacher_k", "student_q", "student_k")]
    ragged = [inputs[name] for name in ("q_offsets", "k_offsets", "max_q", "max_k")]
    op = torch.ops.vleff.attention_distillation.default
    leaves = [operand.clone().requires_grad_() for operand in operands[2:]]
    torch.library.opcheck(op, (*operands[:2], *leaves, *ragged), SCALES)
    divergence, statistics = op(*operands, *ragged, **SCALES)
    backward = torch.ops.vleff.attention_distillation_backward.default
    torch.library.opcheck(backward, (divergence, *operands, statistics, *ragged), SCALES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_results_have_the_shapes_of_real_ones(dtype: torch.dtype) -> None:
    inputs = make_inputs([5, 4], [7, 8], student_dim=24, dtype=dtype)
    # as from a projection whose result is transposed
    inputs["student_q"] = inputs["student_q"].transpose(0, 1).contiguous().transpose(0, 1)

    def all_results(**inputs: Any) -> list[Tensor]:
        leaves = {name: inputs[name].detach().requires_grad_() for name in STUDENT}
        divergence = attention_distillation(**inputs | leaves)
        return [divergence, *torch.autograd.grad(divergence.sum(), leaves.values())]

    real = all_results(**inputs)
    with FakeTensorMode() as mode:
        fake = all_results(**{k: mode.from_tensor(x) if isinstance(x, Tensor) else x for k, x in inputs.items()})
    for real_result, fake_result in zip(real, fake, strict=True):
        assert (fake_result.shape, fake_result.dtype) == (real_result.shape, real_result.dtype)
        assert fake_result.stride() == real_result.stride()


def layer(inputs: Inputs) -> Tensor:
    return attention_distillation(**inputs | {"student_q": inputs["student_q"] * 2}) + 1


# torch.compile gives sizes 0 and 1 graphs of their own, and at first takes equal sizes for one: so 5 heads
BATCHES = [([3, 4], [6, 8]), ([5, 1, 7], [2, 9, 9]), ([2, 30, 5], [3, 3, 40]), ([0, 9], [5, 0])]


def test_compiles_once_for_all_token_counts() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for number, lengths in enumerate(BATCHES):
        inputs = make_inputs(*lengths, heads=5)
        leaves = {name: inputs[name].requires_grad_() for name in STUDENT}
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(inputs)
            gradient = torch.autograd.grad(actual.sum(), leaves.values())
        expected = layer(inputs)
        assert_same_bits(actual, expected)
        for result, eager in zip(gradient, torch.autograd.grad(expected.sum(), leaves.values()), strict=True):
            assert_same_bits(result, eager)


@pytest.mark.parametrize("name", NOTHING)
def test_no_tokens_under_compile(name: str) -> None:
    torch._dynamo.reset()
    inputs = make_inputs(**NOTHING[name])
    assert_same_bits(torch.compile(layer, fullgraph=True)(inputs), layer(inputs))


def test_flops_count_every_pair() -> None:
    inputs = make_inputs([3, 0, 7], [5, 2, 0], 3, 40, 24)
    inputs["student_q"].requires_grad_()
    forward = 2 * 3 * 5 * 3 * (40 + 24)
    assert attention_distillation_flops([3, 0, 7], [5, 2, 0], 3, 40, 24) == forward
    with FlopCounterMode(display=False) as counter:
        divergence = attention_distillation(**inputs)
        assert counter.get_total_flops() == forward
        divergence.sum().backward()
    assert counter.get_total_flops() == 2 * forward + 2 * 3 * 5 * 3 * 2 * 24


def test_flops_of_tensors_without_data_count_the_longest_sample() -> None:
    inputs = make_inputs([3, 5], [4, 2])
    inputs = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in inputs.items()}
    with FlopCounterMode(display=False) as counter:
        attention_distillation(**inputs)
    assert counter.get_total_flops() == attention_distillation_flops([5, 5], [4, 4], 2, 16, 16)


def test_profiler_names_forward_and_backward() -> None:
    inputs = make_inputs([5], [4])
    inputs["student_k"].requires_grad_()
    with torch.profiler.profile() as profile:
        attention_distillation(**inputs).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"vleff::attention_distillation", "vleff::attention_distillation_backward"} <= names


def good_inputs() -> Inputs:
    return make_inputs([3, 3], [4, 5], 2, 16, 24)


def gaps(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, -1)[..., ::2]


BAD: list[tuple[str, Callable[[Inputs], Any]]] = [
    ("teacher_q", lambda i: i["teacher_q"].double()),
    ("teacher_q", lambda i: i["teacher_q"].flatten(1)),
    ("teacher_q", lambda i: gaps(i["teacher_q"])),
    ("teacher_q", lambda i: i["teacher_q"][:, :0]),
    ("teacher_k", lambda i: i["teacher_k"].bfloat16()),
    ("teacher_k", lambda i: i["teacher_k"][:, :1]),
    ("teacher_k", lambda i: i["teacher_k"][..., :8]),
    ("student_q", lambda i: i["student_q"][:5]),
    ("student_q", lambda i: i["student_q"][:, :1]),
    ("student_q", lambda i: i["student_q"].half()),
    ("student_k", lambda i: i["student_k"][..., :16]),
    ("student_k", lambda i: i["student_k"][:8]),
    ("student_k", lambda i: gaps(i["student_k"])),
    ("q_offsets", lambda i: i["q_offsets"].long()),
    ("q_offsets", lambda i: i["q_offsets"][None]),
    ("q_offsets", lambda i: i["q_offsets"][:0]),
    ("q_offsets", lambda i: torch.tensor([1, 3, 6], dtype=torch.int32)),
    ("q_offsets", lambda i: torch.tensor([0, 7, 6], dtype=torch.int32)),
    ("q_offsets", lambda i: torch.tensor([0, 3, 5], dtype=torch.int32)),
    ("k_offsets", lambda i: torch.tensor([0, 9], dtype=torch.int32)),
    ("k_offsets", lambda i: torch.tensor([0, 2, 10], dtype=torch.int32)),
    ("max_q", lambda i: 2),
    ("max_q", lambda i: -1),
    ("max_k", lambda i: 4),
    ("teacher_scale", lambda i: float("nan")),
    ("student_scale", lambda i: 1e300),
]


def message(op: str, argument: str) -> str:
    return rf"{op}: argument '{argument}': expected .+, got .+"


@pytest.mark.parametrize("argument, wrong", BAD)
def test_bad_argument(argument: str, wrong: Callable[[Inputs], Any]) -> None:
    inputs = good_inputs()
    with pytest.raises(RuntimeError, match=message("attention_distillation", argument)):
        attention_distillation(**inputs | {argument: wrong(inputs)})


def backward_inputs() -> Inputs:
    inputs = good_inputs() | SCALES
    divergence, statistics = torch.ops.vleff.attention_distillation(**inputs)
    return inputs | {"grad_divergence": divergence, "statistics": statistics}


@pytest.mark.parametrize("argument, wrong", BAD)
def test_bad_argument_of_the_compiled_backward(argument: str, wrong: Callable[[Inputs], Any]) -> None:
    inputs = backward_inputs()
    with pytest.raises(RuntimeError, match=message("attention_distillation_backward", argument)):
        torch.ops.vleff.attention_distillation_backward(**inputs | {argument: wrong(inputs)})


@pytest.mark.parametrize("argument", ["grad_divergence", "statistics"])
@pytest.mark.parametrize("wrong", [torch.zeros(6), torch.zeros(5, 2), torch.zeros(6, 2).double()], ids=str)
def test_bad_gradient(argument: str, wrong: Tensor) -> None:
    with pytest.raises(RuntimeError, match=message("attention_distillation_backward", argument)):
        torch.ops.vleff.attention_distillation_backward(**backward_inputs() | {argument: wrong})


@pytest.mark.parametrize("width", [0, 257])
def test_head_sizes_out_of_range(width: int) -> None:
    for side, operands in (("teacher", {"teacher_dim": width, "student_dim": 8}), ("student", {"student_dim": width})):
        with pytest.raises(RuntimeError, match=message("attention_distillation", f"{side}_q")):
            attention_distillation(**make_inputs([2], [3], **operands))


@given(offsets=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 9), max_size=5), max_k=st.integers(-1, 10))
def test_any_offsets_are_used_or_refused(offsets: list[int], max_k: int) -> None:
    inputs = make_inputs([6], [9]) | {"k_offsets": torch.tensor(offsets, dtype=torch.int32), "max_k": max_k}
    inputs["q_offsets"] = offsets_of([0] * (len(offsets) - 2) + [6])
    good = len(offsets) >= 2 and offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] == 9
    good = good and max(b - a for a, b in pairwise(offsets)) <= max_k
    if good:
        assert attention_distillation(**inputs).isfinite().all()
    else:
        with pytest.raises(RuntimeError, match=r"argument '(q_offsets|k_offsets|max_k)': expected .+, got .+"):
            attention_distillation(**inputs)
