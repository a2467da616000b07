"""FusedLinear: results, gradients, and its way from and to nn.Linear."""

import gc

import pytest
import torch
from fused_linear_cases import (
    IN,
    OUT,
    Model,
    assert_packs_again,
    assert_weights,
    infer,
    is_packed,
)
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune

from vleff.nn import FusedLinear
from vleff.ops import fused_linear, packs_linear_weight
from vleff.ops.fused_linear import ACTIVATIONS, activate


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inference_is_the_op_and_training_agrees_with_plain_torch(activation: str, residual: bool) -> None:
    linear = nn.Linear(IN, OUT)
    fused = FusedLinear.from_linear(linear, activation)
    input, added = torch.randn(20, IN), torch.randn(20, OUT) if residual else None
    plain = activate(nn.functional.linear(input, linear.weight, linear.bias), activation)
    plain = plain if added is None else plain + added
    torch.testing.assert_close(fused(input, added), plain, atol=1e-5, rtol=1e-5)
    expected = fused_linear(input, linear.weight, linear.bias, added, activation)
    assert torch.equal(infer(fused, input, added), expected)
    with torch.inference_mode():
        assert torch.equal(fused(input, added), expected)


def test_it_stands_for_a_linear() -> None:
    fused = FusedLinear(IN, OUT, bias=False, dtype=torch.bfloat16, activation="gelu")
    assert isinstance(fused, nn.Linear)
    assert fused.bias is None and fused.weight.dtype == torch.bfloat16
    assert repr(fused) == "FusedLinear(in_features=256, out_features=128, bias=False, activation=gelu)"
    assert infer(fused, torch.randn(2, 3, IN, dtype=torch.bfloat16)).shape == (2, 3, OUT)


def test_autocast_is_left_to_torch() -> None:
    fused = FusedLinear(IN, OUT)
    input = torch.randn(20, IN)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = fused(input)
        expected = nn.functional.linear(input, fused.weight, fused.bias)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


def test_gradients_flow_whatever_requires_them() -> None:
    fused = FusedLinear(IN, OUT, activation="gelu").eval().requires_grad_(False)
    input, residual = torch.randn(20, IN), torch.randn(20, OUT)
    fused(input, residual)
    assert is_packed(fused)  # gradients are enabled, but nothing requires one
    for leaf in (input, residual, fused.weight, fused.bias):
        leaf.requires_grad_()
        out = fused(input, residual)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert grad.abs().sum() > 0
        leaf.requires_grad_(False)


def test_wrong_arguments_are_named() -> None:
    fused = FusedLinear(IN, OUT)
    with pytest.raises(RuntimeError, match="fused_linear: argument 'weight': expected"):
        infer(fused, torch.randn(4, IN + 1))
    with pytest.raises(RuntimeError, match="fused_linear: argument 'residual': expected"):
        infer(fused, torch.randn(4, IN), torch.randn(4, IN))
    with pytest.raises(ValueError, match="argument 'activation': expected one of none, gelu"):
        FusedLinear(IN, OUT, activation="tanh")
    for wrong in (nn.Identity(), nn.Bilinear(2, 2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))):
        with pytest.raises(TypeError, match=r"argument 'linear': expected an nn.Linear"):
            FusedLinear.from_linear(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_conversion_to_another_dtype(packed: tuple, dtype: torch.dtype) -> None:
    model, weights, input, _ = packed
    parameter = model.first.weight
    assert model.to(dtype).first.weight is parameter
    del parameter
    assert_weights(model, {name: weight.to(dtype) for name, weight in weights.items()})
    plain = Model(dtype)
    plain.load_state_dict(model.state_dict())
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        infer(model, input.to(dtype)), infer(plain, input.to(dtype)), rtol=tolerance, atol=tolerance
    )
    assert is_packed(model.first) == packs_linear_weight(dtype)
    if not packs_linear_weight(dtype):
        assert f"oneDNN takes no {dtype} on cpu".replace("torch.", "") in model.first.explain()


def test_half_bfloat16_float(packed: tuple) -> None:
    model, weights, input, _ = packed
    for convert, dtype in ((nn.Module.half, torch.float16), (nn.Module.bfloat16, torch.bfloat16)):
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
        assert_weights(convert(model), weights)
        infer(model, input.to(dtype))
    assert_weights(model.float(), {name: weight.float() for name, weight in weights.items()})


def test_to_another_device(packed: tuple) -> None:
    model, _, _, _ = packed
    assert model.to("meta").first.weight.is_meta
    assert infer(model, torch.empty(20, IN, device="meta", dtype=model.first.weight.dtype)).is_meta
    assert "on meta" in model.first.explain()


def test_share_memory(packed: tuple) -> None:
    model, weights, input, output = packed
    model.share_memory()
    assert model.first.weight.is_shared()
    assert_weights(model, weights)
    assert torch.equal(infer(model, input), output)
    assert "shared with other processes" in model.first.explain()


def test_requires_grad_and_zero_grad(packed: tuple) -> None:
    model, weights, input, output = packed
    model.requires_grad_(False)
    assert not model.first.weight.requires_grad
    assert torch.equal(model(input), output) and is_packed(model.first)
    model.requires_grad_(True)
    model.zero_grad()
    assert_weights(model, weights)
    assert model(input).requires_grad


def test_training_between_inferences(packed: tuple) -> None:
    model, weights, input, _ = packed
    plain = Model(input.dtype)
    plain.load_state_dict(weights)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-5) for m in (model, plain)]
    for _ in range(3):
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            m(input).float().square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(infer(model, input), infer(plain, input), rtol=2e-2, atol=1e-5)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert not is_packed(model.first)  # an optimizer refers to it
    del optimizers, optimizer, m
    gc.collect()
    infer(model, input)
    assert is_packed(model.first, model.second)


def test_parametrization_and_pruning(packed: tuple) -> None:
    model, _, input, _ = packed
    prune.l1_unstructured(model.first, "weight", amount=0.5)
    pruned = nn.functional.linear(input, model.first.weight, model.first.bias)
    torch.testing.assert_close(infer(model.first, input), pruned.detach(), rtol=1e-2, atol=1e-3)
    prune.remove(model.first, "weight")
    torch.testing.assert_close(infer(model.first, input), pruned.detach(), rtol=1e-2, atol=1e-3)
    norm = nn.utils.parametrizations.weight_norm(model.second)
    assert norm(torch.randn(4, OUT, dtype=input.dtype)).requires_grad


def test_functional_call_and_vmap(packed: tuple) -> None:
    model, weights, input, output = packed
    twice = {"weight": 2 * weights["first.weight"], "bias": weights["first.bias"]}
    out = torch.func.functional_call(model.first, twice, input)
    torch.testing.assert_close(out, nn.functional.linear(input, *twice.values()), rtol=1e-2, atol=1e-3)
    stacked = torch.stack([input, 2 * input])
    mapped = torch.func.vmap(lambda x: infer(model, x))(stacked)
    torch.testing.assert_close(mapped[0], output, rtol=2e-2, atol=1e-2)
    assert_packs_again(model, input, output)


def test_tangents_pass_through(packed: tuple) -> None:
    model, weights, input, _ = packed
    tangent = torch.randn_like(input)
    with torch.no_grad(), forward_ad.dual_level():
        out = model.first(forward_ad.make_dual(input, tangent))
        actual = forward_ad.unpack_dual(out).tangent
    assert torch.equal(actual, nn.functional.linear(tangent, weights["first.weight"]))


def test_from_linear_and_back() -> None:
    linear = nn.Linear(IN, OUT).eval()
    weight, bias = linear.weight, linear.bias
    values = weight.detach().clone()
    fused = FusedLinear.from_linear(linear, "gelu")
    assert fused.weight is weight and fused.bias is bias and not fused.training
    del weight
    input = torch.randn(20, IN)
    infer(fused, input)
    assert is_packed(fused)
    torch.testing.assert_close(linear(input), nn.functional.linear(input, values, bias))  # still usable
    infer(fused, input)
    identity = id(dict.__getitem__(fused._parameters, "weight"))
    fused.move_parameters_to(linear)
    assert type(linear._parameters) is dict
    assert id(linear.weight) == identity and linear.bias is bias
    assert torch.equal(linear.weight, values)
    back = fused.to_linear()
    assert type(back) is nn.Linear and back.weight is linear.weight and not back.training
    assert repr(back) == repr(linear)
