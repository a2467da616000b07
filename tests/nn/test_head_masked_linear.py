"""HeadMaskedLinear: results, gradients, its packed copy, and its way from and to nn.Linear."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from head_masked_cases import DTYPES, make_mask, offsets_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vleff.nn import FusedLinear, HeadMaskedLinear, project_heads
from vleff.ops import (
    head_masked_project,
    head_masked_project_reference,
    head_masked_reduce,
    head_masked_reduce_reference,
    packs_linear_weight,
)

WIDTH, HEADS, HEAD_DIM = 48, 3, 16
FEATURES = HEADS * HEAD_DIM
LENGTHS = [20, 3, 9, 11]
OFFSETS, MASK = offsets_of(LENGTHS), make_mask(4, HEADS)
TOKENS = sum(LENGTHS)


def layer(direction: str = "project", dtype: torch.dtype = torch.float32, parts: int = 1) -> HeadMaskedLinear:
    sizes = (WIDTH, parts * FEATURES) if direction == "project" else (FEATURES, WIDTH)
    return HeadMaskedLinear(*sizes, HEADS, direction, parts, dtype=dtype)


def tokens(module: nn.Linear) -> Tensor:
    return torch.randn(TOKENS, module.in_features, dtype=module.weight.dtype)


def infer(module: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return module(*args, **options)


def formula(module: HeadMaskedLinear, input: Tensor, mask: Tensor | None = MASK, **options: Any) -> Tensor:
    """The reference with the module's parameters."""
    if module.direction == "project":
        options |= {"parts": module.parts}
        return head_masked_project_reference(input, module.weight, OFFSETS, mask, module.bias, **options)
    return head_masked_reduce_reference(input, module.weight, OFFSETS, mask, module.bias, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 3])
def test_projection(cpu_isa: str, dtype: torch.dtype, parts: int) -> None:
    module = layer("project", dtype, parts)
    input, index = tokens(module), torch.randint(TOKENS, (TOKENS,))
    for mask in (MASK, None):
        expected = head_masked_project(input, module.weight, OFFSETS, mask, module.bias, None, parts).detach()
        assert torch.equal(infer(module, input, OFFSETS, mask), expected)
        assert torch.equal(module(input, OFFSETS, mask).detach(), expected)
    assert torch.equal(infer(module, input, OFFSETS, MASK, index=index), infer(module, input[index], OFFSETS, MASK))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reduction(cpu_isa: str, dtype: torch.dtype) -> None:
    module = layer("reduce", dtype)
    input, residual = tokens(module), torch.randn(TOKENS, WIDTH, dtype=dtype)
    for mask in (MASK, None):
        expected = head_masked_reduce(input, module.weight, OFFSETS, mask, module.bias, residual).detach()
        assert torch.equal(infer(module, input, OFFSETS, mask, residual=residual), expected)
        assert torch.equal(module(input, OFFSETS, mask, residual=residual).detach(), expected)


@pytest.mark.parametrize("direction", ["project", "reduce"])
def test_it_stands_for_a_linear(direction: str) -> None:
    module = layer(direction)
    assert isinstance(module, nn.Linear)
    input = torch.randn(2, 5, module.in_features)
    expected = nn.functional.linear(input, module.weight, module.bias)
    torch.testing.assert_close(module(input), expected)
    torch.testing.assert_close(infer(module, input), expected)
    assert infer(module, input[:0]).shape == (0, 5, module.out_features)
    assert f"heads=3, direction={direction}" in repr(module)
    if direction == "reduce":
        torch.testing.assert_close(module(input, residual=input), expected + input)


@pytest.mark.parametrize("direction", ["project", "reduce"])
def test_gradients_flow_whatever_requires_them(direction: str) -> None:
    module = layer(direction).requires_grad_(False)
    input = tokens(module)
    module(input, OFFSETS, MASK)  # makes the packed copy
    for leaf in (input, module.weight, module.bias):
        leaf.requires_grad_()
        (grad,) = torch.autograd.grad(module(input, OFFSETS, MASK).square().sum(), leaf)
        (expected,) = torch.autograd.grad(formula(module, input).square().sum(), leaf)
        torch.testing.assert_close(grad, expected, atol=1e-4, rtol=1e-4)
        leaf.requires_grad_(False)


def test_query_key_and_value_as_one() -> None:
    layers = [layer() for _ in range(3)]
    layers[1].bias = None
    input, index = tokens(layers[0]), torch.randperm(TOKENS)
    expected = torch.cat([infer(module, input, OFFSETS, MASK, index=index) for module in layers], 1)
    assert torch.equal(infer(project_heads, layers, input, OFFSETS, MASK, index), expected)
    together = project_heads(layers, input, OFFSETS, MASK, index)
    assert torch.equal(together.detach(), expected)
    together.square().sum().backward()
    for module in layers:
        (grad,) = torch.autograd.grad(formula(module, input[index]).square().sum(), module.weight)
        torch.testing.assert_close(module.weight.grad, grad, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        layers[2].weight.mul_(2)  # the joint copy sees it
    expected = torch.cat([infer(formula, module, input) for module in layers], 1)
    torch.testing.assert_close(infer(project_heads, layers, input, OFFSETS, MASK), expected)
    two_parts = [layer(parts=2), layers[0]]
    expected = torch.cat([infer(module, input, OFFSETS, MASK) for module in two_parts], 1)
    assert torch.equal(infer(project_heads, two_parts, input, OFFSETS, MASK), expected)


def test_hooks_of_layers_that_run_as_one_are_called() -> None:
    layers = [layer(), layer()]
    input = tokens(layers[0])
    expected = infer(project_heads, layers, input, OFFSETS, MASK)
    seen: list[nn.Module] = []
    handle = layers[1].register_forward_hook(lambda module, *_: seen.append(module))
    assert torch.equal(infer(project_heads, layers, input, OFFSETS, MASK), expected) and seen == [layers[1]]
    handle.remove()


def test_layers_that_do_not_fit_together_are_named() -> None:
    for other in (layer("reduce"), HeadMaskedLinear(WIDTH, FEATURES, 1), HeadMaskedLinear(WIDTH, 2 * FEATURES, HEADS)):
        with pytest.raises(ValueError, match="argument 'layers': expected layers that project alike"):
            project_heads([layer(), other], torch.zeros(TOKENS, WIDTH), OFFSETS)


@pytest.mark.parametrize("fused", [False, True], ids=["Linear", "FusedLinear"])
def test_from_linear_and_back(fused: bool) -> None:
    linear = FusedLinear(WIDTH, 512) if fused else nn.Linear(WIDTH, 512)
    input = torch.randn(TOKENS, WIDTH)
    expected = infer(linear, input)
    assert not fused or linear.is_packed == packs_linear_weight(torch.float32)
    masked = HeadMaskedLinear.from_linear(linear.eval(), 8)
    assert masked.weight is linear.weight and masked.bias is linear.bias and not masked.training
    torch.testing.assert_close(infer(masked, input, OFFSETS), expected)
    torch.testing.assert_close(infer(linear, input), expected)
    torch.testing.assert_close(infer(masked, input), expected)
    with torch.no_grad():
        linear.weight.mul_(2)
        linear.bias.mul_(2)
    torch.testing.assert_close(infer(masked, input), 2 * expected)
    back = masked.to_linear()
    assert type(back) is nn.Linear and back.weight is masked.weight and back.bias is masked.bias
    assert back.weight is linear.weight and not back.training
    assert list(masked.state_dict()) == list(back.state_dict()) == ["weight", "bias"]


def test_wrong_arguments_are_named() -> None:
    for wrong in (nn.Identity(), nn.Bilinear(2, 2, 2), FusedLinear(48, 48, activation="gelu")):
        with pytest.raises(TypeError, match=r"argument 'linear': expected an nn.Linear"):
            HeadMaskedLinear.from_linear(wrong, 2)
    for change, message in (
        ({"heads": 5}, "argument 'heads': expected a number that divides 48"),
        ({"heads": 0}, "argument 'heads'"),
        ({"direction": "up"}, "argument 'direction': expected project or reduce, got 'up'"),
        ({"parts": 0}, "argument 'parts'"),
        ({"direction": "reduce", "parts": 2}, "argument 'parts': expected at least 1, and 1 to reduce, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            HeadMaskedLinear(48, 48, **({"heads": 3} | change))
    input = torch.zeros(TOKENS, WIDTH)
    with pytest.raises(TypeError, match="argument 'residual': expected None, as the direction is project"):
        layer()(input, OFFSETS, MASK, residual=input)
    with pytest.raises(TypeError, match="argument 'index': expected None, as the direction is reduce"):
        layer("reduce")(input, OFFSETS, MASK, index=torch.arange(TOKENS))
    with pytest.raises(TypeError, match="argument 'head_mask': expected None, without offsets"):
        layer()(input, head_mask=MASK)
    with pytest.raises(RuntimeError, match=r"argument 'head_mask': expected bool \[batch, heads\]"):
        infer(layer(), input, OFFSETS, MASK[1:])


@pytest.mark.parametrize("change", ["copy_", "optimizer", "load", "assign", "data", "swap", "dtype"])
@pytest.mark.parametrize("direction", ["project", "reduce"])
def test_changed_weights_are_seen(direction: str, change: str) -> None:
    module = layer(direction)
    input = tokens(module)
    before = infer(module, input, OFFSETS, MASK)
    new = torch.randn_like(module.weight)
    if change == "copy_":
        with torch.no_grad():
            module.weight.copy_(new)
    elif change == "optimizer":
        module(input, OFFSETS, MASK).sum().backward()
        torch.optim.SGD(module.parameters(), lr=1.0).step()
    elif change == "load":
        module.load_state_dict(module.state_dict() | {"weight": new})
    elif change == "assign":
        module.load_state_dict(module.state_dict() | {"weight": new}, assign=True)
    elif change == "data":
        module.weight.data.copy_(new)
        module.refresh()
    elif change == "swap":
        module.weight = nn.Parameter(new)
    else:
        module.bfloat16()
        input = input.bfloat16()
    after = infer(module, input, OFFSETS, MASK)
    assert not torch.equal(after.float(), before)
    torch.testing.assert_close(after, infer(formula, module, input), atol=1e-2, rtol=1e-2)


def test_another_instruction_set_packs_again() -> None:
    module, before = layer(), torch.ops.vleff.cpu_isa()
    input = tokens(module)
    try:
        for level in torch.ops.vleff.cpu_isa_levels():
            torch.ops.vleff.set_cpu_isa(level)
            torch.testing.assert_close(infer(module, input, OFFSETS, MASK), infer(formula, module, input))
    finally:
        torch.ops.vleff.set_cpu_isa(before)


def test_copies_and_files(tmp_path: Path) -> None:
    module = layer()
    input = tokens(module)
    expected = infer(module, input, OFFSETS, MASK)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert torch.equal(infer(twin, input, OFFSETS, MASK), expected)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weight.zero_()
    assert torch.equal(infer(module, input, OFFSETS, MASK), expected)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    other, plain = layer(), nn.Linear(WIDTH, FEATURES)
    for reader in (other, plain):
        reader.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(infer(other, input, OFFSETS, MASK), expected)
    assert torch.equal(plain.weight, module.weight)


def test_other_dtypes_devices_and_modes() -> None:
    module = layer()
    input = tokens(module)
    double = copy.deepcopy(module).double()
    assert "plain torch, because the kernel takes no float64 on cpu" in double.explain()
    assert module.explain() == "head_masked_project, 3 heads"
    torch.testing.assert_close(infer(double, input.double(), OFFSETS, MASK), infer(formula, double, input.double()))
    meta = copy.deepcopy(module).to("meta")
    assert infer(meta, input.to("meta"), OFFSETS.to("meta"), MASK.to("meta")).shape == (TOKENS, FEATURES)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(input, OFFSETS, MASK)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), formula(module, input), atol=0.05, rtol=0.05)
    with torch.inference_mode():
        made_here = layer()
        out = made_here(input, OFFSETS, MASK)
        made_here.weight.mul_(2)
        assert not torch.equal(made_here(input, OFFSETS, MASK), out)
        assert torch.equal(module(input, OFFSETS, MASK), infer(module, input, OFFSETS, MASK))


@pytest.mark.parametrize("direction", ["project", "reduce"])
def test_compiles_to_one_graph_for_all_token_counts(direction: str) -> None:
    torch._dynamo.reset()
    module = layer(direction)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    infer(module, tokens(module), OFFSETS, MASK)
    for number, lengths in enumerate(([3, 4, 2, 9, 1], [5, 1, 7], [2, 30, 5])):
        input, offsets = torch.randn(sum(lengths), module.in_features), offsets_of(lengths)
        mask = make_mask(len(lengths), HEADS)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = infer(compiled, input, offsets, mask)
        torch.testing.assert_close(actual, infer(module, input, offsets, mask))
    compiled(input, offsets, mask).sum().backward()
    (expected,) = torch.autograd.grad(module(input, offsets, mask).sum(), module.weight)
    torch.testing.assert_close(module.weight.grad, expected)
