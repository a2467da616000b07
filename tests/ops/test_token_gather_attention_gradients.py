"""Gradients of token_gather_attention against those of its reference in float64."""

from functools import cache

import pytest
import torch
from attention_cases import (
    DTYPES,
    NOTHING,
    SHAPES,
    Inputs,
    assert_close,
    assert_same_bits,
    assert_within_twice_plain,
    error,
    gradients,
    in_dtype,
    make_inputs,
    offsets_of,
    rounding,
    sdpa,
)
from torch import Tensor

from vleff.ops import token_gather_attention, token_gather_attention_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DRAWS = 4


def exact_gradients(inputs: Inputs, grad_out: Tensor, grad_lse: Tensor | None = None) -> dict[str, Tensor]:
    return gradients(token_gather_attention_reference, in_dtype(inputs, torch.float64), grad_out, grad_lse)


@cache
def draws_and_yardsticks(name: str, dtype: torch.dtype) -> tuple:
    """Inputs with output gradients, gradients of the reference in float64, and those of plain torch."""
    draws = [make_inputs(**SHAPES[name], dtype=dtype) for _ in range(DRAWS)]
    draws = [(inputs, torch.randn_like(inputs["q"])) for inputs in draws]
    plain = [[gradients(sdpa, *draw) for draw in draws]]
    if dtype == torch.float32:  # torch's two ways differ much from case to case here
        plain.append([gradients(token_gather_attention_reference, *draw) for draw in draws])
    return draws, [exact_gradients(*draw) for draw in draws], plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("one token", "empty samples")])
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    draws, expected, plain = draws_and_yardsticks(name, dtype)
    actual = [gradients(token_gather_attention, *draw) for draw in draws]
    for operand in ("q", "k", "v"):
        assert_within_twice_plain(
            [g[operand] for g in actual],
            [g[operand] for g in expected],
            *[[g[operand] for g in results] for results in plain],
            dtype=dtype,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_has_no_gradient_in_its_logit(cpu_isa: str, dtype: torch.dtype) -> None:
    """With one key P is 1 whatever q and k are; only the rounding of the terms that cancel may be left."""
    inputs = make_inputs([1], head_dim=64, dtype=dtype)
    grad_out = torch.randn_like(inputs["q"])
    actual = gradients(token_gather_attention, inputs, grad_out)
    terms = (grad_out.float().abs() * inputs["v"].float().abs()).sum() / 8
    for operand, other in (("q", "k"), ("k", "q")):
        assert actual[operand].abs().max() <= 1e-6 * terms * inputs[other].abs().max()
    assert_same_bits(actual["v"], grad_out)


OPTIONS = {
    "nothing special": lambda: {},
    "causal": lambda: {"causal": True},
    "head mask": lambda: {"head_mask": torch.tensor([[True, False], [True, True], [True, True], [False, False]])},
    "dropout": lambda: {"dropout_p": 0.3, "seed": torch.tensor([99])},
    "hidden keys": lambda: {"key_bias": torch.where(torch.rand(66) < 0.4, -torch.inf, torch.randn(66))},
    "a sample without visible keys": lambda: {"key_bias": torch.zeros(66).index_fill(0, torch.arange(30), -torch.inf)},
    "gathered with repeats": lambda: {
        "q_index": torch.randint(20, (50,)),
        "k_index": torch.randint(30, (66,), dtype=torch.int32),
    },
    "everything": lambda: {
        "scale": -0.2,
        "causal": True,
        "head_mask": torch.rand(4, 2) < 0.7,
        "key_bias": torch.where(torch.rand(66) < 0.2, -torch.inf, torch.randn(66)),
        "dropout_p": 0.5,
        "seed": torch.tensor([7]),
        "q_index": torch.randint(50, (50,), dtype=torch.int32),
        "k_index": torch.randint(66, (66,)),
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_through_out_and_lse_match_the_reference(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs([17, 1, 0, 32], [23, 7, 5, 31], head_dim=40, dtype=dtype, **OPTIONS[name]())
    for operand in ("q", "k", "v"):  # without outliers: errors are measured against the largest gradient
        inputs[operand] = torch.randn(inputs[operand].shape).to(dtype)
    grads = torch.randn(50, 2, 40), torch.randn(50, 2)
    actual = gradients(token_gather_attention, inputs, grads[0].to(dtype), grads[1])
    expected = exact_gradients(inputs, grads[0].to(dtype), grads[1])
    assert actual.keys() == expected.keys()
    for operand, gradient in actual.items():
        assert gradient.dtype == inputs[operand].dtype
        # grad_key_bias is float32, but sums what depends on operands rounded to dtype
        assert_close(gradient, expected[operand], dtype)


@pytest.mark.parametrize("name", [*NOTHING, "empty samples"])
@pytest.mark.parametrize("gathered", [False, True])
def test_empty_samples_have_zero_gradients(cpu_isa: str, name: str, gathered: bool) -> None:
    inputs = make_inputs(**(SHAPES | NOTHING)[name])
    inputs["key_bias"] = torch.randn(len(inputs["k"]))
    if gathered:
        inputs |= {f"{side}_index": torch.randperm(len(inputs[side])) for side in "qk"}
    grad_out, grad_lse = torch.randn(inputs["q"].shape), torch.randn(inputs["q"].shape[:2])
    actual = gradients(token_gather_attention, inputs, grad_out, grad_lse)
    for operand, expected in exact_gradients(inputs, grad_out, grad_lse).items():
        assert_close(actual[operand], expected, torch.float32)


def test_rows_that_no_index_names_have_zero_gradients(cpu_isa: str) -> None:
    inputs = make_inputs([9], [12])
    index = {"q_index": torch.tensor([3, 3, 8]), "k_index": torch.tensor([0, 11, 0, 5])}
    inputs |= index | {"q_offsets": offsets_of([3]), "k_offsets": offsets_of([4])}
    grads = gradients(token_gather_attention, inputs, torch.randn(3, 2, 16))
    for operand, rows in (("q", index["q_index"]), ("k", index["k_index"]), ("v", index["k_index"])):
        named = torch.zeros(len(inputs[operand]), dtype=torch.bool).index_fill(0, rows, True)
        assert (grads[operand][~named] == 0).all() and (grads[operand][named] != 0).any()


def test_dropped_heads_have_zero_gradients_and_the_others_their_own(cpu_isa: str) -> None:
    inputs = make_inputs([17, 8])
    grad_out = torch.randn_like(inputs["q"])
    head_mask = torch.tensor([[True, False], [False, True]])
    of_token = head_mask.repeat_interleave(torch.tensor([17, 8]), 0)[:, :, None]
    masked = gradients(token_gather_attention, inputs | {"head_mask": head_mask}, grad_out)
    for operand, gradient in gradients(token_gather_attention, inputs, grad_out).items():
        assert_same_bits(masked[operand], gradient.masked_fill(~of_token, 0))


@pytest.mark.parametrize("needing", ["q", "k", "v", "key_bias", "qk", "kv"])
def test_only_what_needs_a_gradient_gets_one(needing: str) -> None:
    names = [needing] if needing == "key_bias" else list(needing)
    inputs = make_inputs([17, 8], key_bias=torch.randn(25))
    grad_out = torch.randn_like(inputs["q"])
    expected = gradients(token_gather_attention, inputs, grad_out)
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    token_gather_attention(**inputs | leaves)[0].backward(grad_out)
    for name in names:
        assert_same_bits(leaves[name].grad, expected[name])


def test_views_of_a_fused_projection(cpu_isa: str) -> None:
    fused = torch.randn(20, 3, 2, 40)
    inputs = make_inputs([13, 7], head_dim=40)
    whole = inputs | {name: fused[:, i].contiguous() for i, name in enumerate("qkv")}
    grad_out = torch.randn(2, 20, 40).transpose(0, 1)
    separate = gradients(token_gather_attention, whole, grad_out.contiguous())
    fused.requires_grad_()
    q, k, v = fused.unbind(1)
    token_gather_attention(**inputs | {"q": q, "k": k, "v": v})[0].backward(grad_out)
    assert_same_bits(fused.grad, torch.stack(list(separate.values()), 1))


def test_lse_alone_and_importance(cpu_isa: str) -> None:
    inputs = make_inputs([17, 8])
    leaves = {name: inputs[name].requires_grad_() for name in "qkv"}
    out, lse, importance = token_gather_attention(**inputs | leaves, importance=True)
    assert out.requires_grad and lse.requires_grad and not importance.requires_grad
    actual = torch.autograd.grad(lse.sum(), leaves.values())
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    exact_lse = token_gather_attention_reference(**inputs | exact)[1]
    expected = torch.autograd.grad(exact_lse.sum(), exact.values(), materialize_grads=True)
    for gradient, reference in zip(actual, expected, strict=True):
        assert error(gradient, reference) <= 64 * rounding(reference, torch.float32)


def test_gradients_are_those_of_the_formula() -> None:
    """gradcheck of the reference by finite differences; the tests above hold the kernels to the reference."""
    inputs = in_dtype(make_inputs([3, 0, 2], [4, 2, 3], head_dim=3), torch.float64)
    key_bias = torch.tensor([0.3, -torch.inf, 1.0, -0.5, 0.0, 2.0, -0.7, 0.1, -1.0], dtype=torch.float64)
    rest = {name: inputs[name] for name in ("q_offsets", "k_offsets", "max_q", "max_k")}
    rest |= {"head_mask": torch.tensor([[True, True], [True, True], [True, False]]), "causal": True}
    rest |= {"dropout_p": 0.2, "seed": torch.tensor([3])}
    rest |= {"q_index": torch.tensor([0, 1, 1, 4, 0]), "k_index": torch.tensor([8, 1, 2, 3, 3, 5, 0, 7, 8])}
    visible = key_bias > -torch.inf

    def function(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        bias = key_bias.masked_scatter(visible, bias)
        out, lse, _ = token_gather_attention_reference(q, k, v, **rest, key_bias=bias)
        return out, lse[lse > -torch.inf]

    torch.manual_seed(1)
    operands = [torch.randn(inputs[name].shape, dtype=torch.float64, requires_grad=True) for name in "qkv"]
    assert torch.autograd.gradcheck(function, (*operands, key_bias[visible].requires_grad_()))


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs([5])
    q = inputs["q"].requires_grad_()
    (grad_q,) = torch.autograd.grad(token_gather_attention(**inputs)[0].sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="token_gather_attention_reference"):
        grad_q.sum().backward()
