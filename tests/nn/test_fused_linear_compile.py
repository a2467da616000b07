"""FusedLinear under torch.compile and torch.export."""

import pytest
import torch
from fused_linear_cases import (
    IN,
    fused_model,
    infer,
    is_packed,
)


@pytest.mark.parametrize("packed_first", [False, True], ids=["plain", "packed"])
def test_compiles_to_one_graph(packed_first: bool) -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    inputs = [torch.randn(rows, IN) for rows in (40, 7, 65)]
    expected = [infer(model, input) for input in inputs]
    if not packed_first:
        model.first.unpack_()
        model.second.unpack_()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for number, (input, output) in enumerate(zip(inputs, expected, strict=True)):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            torch.testing.assert_close(infer(compiled, input), output)
    assert is_packed(model.first) == packed_first


def test_compiled_model_sees_packing_and_changes() -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    input = torch.randn(20, IN)
    plain = infer(compiled, input)
    assert not is_packed(model.first)
    torch.testing.assert_close(infer(model, input), plain)
    assert is_packed(model.first)
    torch.testing.assert_close(infer(compiled, input), plain)
    model.first.weight.data.mul_(2)
    changed = infer(compiled, input)
    torch.testing.assert_close(infer(model, input), changed)
    assert not torch.allclose(changed, plain)


def test_eager_and_compiled_inference_alternate_without_recompiling() -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    input = torch.randn(20, IN)
    output = infer(model, input)
    infer(compiled, input)
    model.first.unpack_()
    infer(compiled, input)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            assert torch.equal(infer(model, input), output)
            assert is_packed(model.first, model.second)
            torch.testing.assert_close(infer(compiled, input), output)
            model.first.unpack_()
            torch.testing.assert_close(infer(compiled, input), output)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export_of_a_packed_model(strict: bool) -> None:
    model = fused_model().eval()
    input = torch.randn(20, IN)
    output = infer(model, input)
    with torch.no_grad():
        exported = torch.export.export(
            model, (input,), strict=strict, dynamic_shapes=({0: torch.export.Dim("rows", min=2)},)
        )
    assert set(exported.state_dict) == set(model.state_dict())
    torch.testing.assert_close(infer(exported.module(), input), output)
    torch.testing.assert_close(infer(exported.module(), input[:3]), output[:3])


def test_compiled_training_after_inference() -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    input = torch.randn(20, IN)
    infer(model, input)
    model.train()
    torch.compile(model, fullgraph=True)(input).sum().backward()
    grad = model.first.weight.grad
    model.zero_grad()
    model(input).sum().backward()
    torch.testing.assert_close(grad, model.first.weight.grad)
