"""token_gather_attention inside torch: opcheck, fake tensors, torch.compile, export, FLOP counts, profiler."""

from typing import Any

import pytest
import torch
from attention_cases import DIFFERENTIABLE, DTYPES, NOTHING, Inputs, assert_same_bits, make_inputs, offsets_of
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import token_gather_attention, token_gather_attention_flops

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing special": {},
    "importance": {"importance": True},
    "dropout": {"dropout_p": 0.3, "seed": torch.tensor([1])},
    "head mask and causal": {"head_mask": torch.tensor([[True, False], [True, True]]), "causal": True},
    "key bias": {"key_bias": torch.arange(15.0)},
    "gathered": {"q_index": torch.tensor([0, 8, 8]), "q_offsets": offsets_of([1, 2]), "k_index": torch.arange(15)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_opcheck(name: str) -> None:
    inputs = make_inputs([5, 4], [7, 8]) | {"scale": 0.3} | OPTIONS[name]
    differentiable = {key: inputs[key].clone().requires_grad_() for key in DIFFERENTIABLE if key in inputs}
    op = torch.ops.vleff.token_gather_attention.default
    torch.library.opcheck(op, *positional(op, inputs | differentiable))
    out, lse, _ = op(**inputs)
    inputs.pop("importance", None)
    backward = torch.ops.vleff.token_gather_attention_backward.default
    inputs |= {"grad_out": out, "grad_lse": lse, "out": out, "lse": lse, "key_bias_grad": "key_bias" in inputs}
    torch.library.opcheck(backward, *positional(backward, inputs))


def positional(op: torch._ops.OpOverload, inputs: Inputs) -> tuple[tuple, dict]:
    """Arguments as the dispatcher has them."""
    arguments = op._schema.arguments
    by_place = tuple(inputs.get(a.name) for a in arguments if not a.kwarg_only)
    return by_place, {a.name: inputs[a.name] for a in arguments if a.kwarg_only and a.name in inputs}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
def test_fake_results_have_the_shapes_of_real_ones(dtype: torch.dtype, importance: bool, gathered: bool) -> None:
    inputs = make_inputs([5, 4], [7, 8], dtype=dtype, importance=importance, key_bias=torch.zeros(15))
    if gathered:
        inputs |= {"q_index": torch.tensor([1, 2]), "q_offsets": offsets_of([1, 1]), "k_index": torch.arange(15)}
    # as from a projection whose result is transposed
    inputs["q"] = inputs["q"].transpose(0, 1).contiguous().transpose(0, 1)

    def all_results(**inputs: Any) -> list[Tensor]:
        leaves = {name: inputs[name].detach().requires_grad_() for name in DIFFERENTIABLE}
        results = token_gather_attention(**inputs | leaves)
        return [*results, *torch.autograd.grad(results[0].sum(), leaves.values())]

    real = all_results(**inputs)
    with FakeTensorMode() as mode:
        fake = all_results(**{k: mode.from_tensor(x) if isinstance(x, Tensor) else x for k, x in inputs.items()})
    for real_result, fake_result in zip(real, fake, strict=True):
        assert (fake_result.shape, fake_result.dtype) == (real_result.shape, real_result.dtype)
        assert fake_result.stride() == real_result.stride()


def layer(inputs: Inputs) -> tuple[Tensor, ...]:
    out, lse, importance = token_gather_attention(**inputs | {"q": inputs["q"] * 2})
    return out + 1, lse, importance


# torch.compile gives sizes 0 and 1 graphs of their own, and at first takes equal sizes for one: so 5 heads
BATCHES = [[3, 4], [5, 1, 7], [2, 30, 5], [0, 9], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("name", ["nothing special", "all options"])
def test_compiles_once_for_all_token_counts(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for number, lengths in enumerate(BATCHES):
        inputs = make_inputs(lengths, heads=5)
        if name == "all options":
            total = sum(lengths)
            inputs |= {"head_mask": torch.rand(len(lengths), 5) < 0.7, "key_bias": torch.randn(total)}
            inputs |= {"q_index": torch.randint(total, (total,)), "k_index": torch.randint(total, (total,))}
            inputs |= {"causal": True, "importance": True, "dropout_p": 0.3, "seed": torch.tensor([number])}
        leaves = {key: inputs[key].requires_grad_() for key in DIFFERENTIABLE if key in inputs}
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(inputs | leaves)
            gradient = torch.autograd.grad(actual[0].sum() + actual[1].sum(), leaves.values())
        expected = layer(inputs | leaves)
        for result, eager in zip(actual, expected, strict=True):
            assert_same_bits(result, eager)
        expected_gradient = torch.autograd.grad(expected[0].sum() + expected[1].sum(), leaves.values())
        for result, eager in zip(gradient, expected_gradient, strict=True):
            torch.testing.assert_close(result, eager)


def test_compiled_dropout_draws_its_seed_from_the_generator() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    inputs = make_inputs([17, 8], dropout_p=0.5)
    torch.manual_seed(5)
    first, second = compiled(inputs)[0], compiled(inputs)[0]
    torch.manual_seed(5)
    assert_same_bits(compiled(inputs)[0], first)
    assert not torch.equal(first, second)


def test_exports_with_dynamic_token_counts() -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, offsets: Tensor) -> Tensor:
            return token_gather_attention(q, q, q, offsets, offsets, 64, 64)[0]

    inputs = make_inputs([3, 4, 5])
    shapes = {"q": {0: torch.export.Dim("tokens")}, "offsets": {0: torch.export.Dim("offsets")}}
    program = torch.export.export(Layer(), (inputs["q"], inputs["q_offsets"]), dynamic_shapes=shapes)
    other = make_inputs([30, 2])
    arguments = other["q"], other["q_offsets"]
    assert_same_bits(program.module()(*arguments), Layer()(*arguments))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_lengths, k_lengths", [([3, 0, 7], [5, 2, 0]), ([9, 4], [4, 9]), ([6], [6]), ([], [])])
def test_flops_count_every_visible_pair(q_lengths: list[int], k_lengths: list[int], causal: bool) -> None:
    head_mask = torch.rand(len(q_lengths), 3) < 0.6
    pairs = sum(
        int(kept) * sum(not causal or j <= i + keys - queries for i in range(queries) for j in range(keys))
        for queries, keys, kept in zip(q_lengths, k_lengths, head_mask.sum(1).tolist(), strict=True)
    )
    assert token_gather_attention_flops(q_lengths, k_lengths, 3, 40, head_mask, causal) == 4 * 40 * pairs
    inputs = make_inputs(q_lengths, k_lengths, 3, 40, head_mask=head_mask, causal=causal)
    inputs["q"].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = token_gather_attention(**inputs)[0]
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 4 * 40 * pairs
    assert counter.get_total_flops() == forward + 10 * 40 * pairs


def test_flops_of_tensors_without_data_count_the_longest_sample() -> None:
    inputs = {k: x.to("meta") if isinstance(x, Tensor) else x for k, x in make_inputs([3, 5]).items()}
    with FlopCounterMode(display=False) as counter:
        token_gather_attention(**inputs)
    assert counter.get_total_flops() == token_gather_attention_flops([5, 5], [5, 5], 2, 16)


def test_profiler_names_forward_and_backward() -> None:
    inputs = make_inputs([5])
    inputs["q"].requires_grad_()
    with torch.profiler.profile() as profile:
        token_gather_attention(**inputs)[0].sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"vleff::token_gather_attention", "vleff::token_gather_attention_backward"} <= names


@pytest.mark.parametrize("name", NOTHING)
def test_no_tokens_under_compile(name: str) -> None:
    torch._dynamo.reset()
    inputs = make_inputs(**NOTHING[name])
    for actual, expected in zip(torch.compile(layer, fullgraph=True)(inputs), layer(inputs), strict=True):
        assert_same_bits(actual, expected)


def test_inference_mode_and_no_grad() -> None:
    inputs = make_inputs([5, 8])
    expected = token_gather_attention(**inputs)[0]
    inputs["q"].requires_grad_()
    with torch.no_grad():
        assert_same_bits(token_gather_attention(**inputs)[0], expected)
    with torch.inference_mode():
        assert_same_bits(token_gather_attention(**inputs)[0], expected)
