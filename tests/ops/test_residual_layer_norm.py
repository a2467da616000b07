"""residual_layer_norm against its reference in float64, at every instruction-set level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import residual_layer_norm, residual_layer_norm_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, residual: bool = True, mean: float = 0.0) -> dict[str, Any]:
    """With one outlier a row."""
    width = shape[-1]
    input = torch.randn(shape, dtype=torch.float64) + mean
    input.scatter_(-1, torch.randint(width, (*shape[:-1], 1)), 30.0)
    return {
        "input": input.to(dtype),
        "residual": torch.randn(shape, dtype=torch.float64).to(dtype) if residual else None,
        "weight": torch.randn(width, dtype=torch.float64).to(dtype),
        "bias": torch.randn(width, dtype=torch.float64).to(dtype),
        "eps": 1e-5,
        "return_sum": True,
    }


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def plain(input: torch.Tensor, residual: Any, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Any:
    total = input if residual is None else input + residual
    return torch.nn.functional.layer_norm(total, weight.shape, weight, bias, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("mean", [0.0, 5.0, 300.0])
@pytest.mark.parametrize("width", [1, 2, 17, 40, 64, 100, 768, 3072])
def test_error_is_at_most_twice_plain_torch(
    cpu_isa: str, width: int, mean: float, residual: bool, dtype: torch.dtype
) -> None:
    inputs = make_inputs((4, 33, width), dtype, residual, mean)
    normalized, total = residual_layer_norm(**inputs)
    exact, exact_total = residual_layer_norm_reference(**in_float64(inputs))
    expected = plain(*[inputs[name] for name in ("input", "residual", "weight", "bias", "eps")])
    error, plain_error = ((x.double() - exact).abs().max() for x in (normalized, expected))
    assert normalized.shape == inputs["input"].shape and normalized.dtype == dtype
    assert error <= 2 * plain_error + torch.finfo(dtype).eps * exact.abs().max()
    assert torch.equal(total, exact_total.float().to(dtype))


@given(st.lists(st.integers(0, 6), max_size=3), st.integers(1, 140), st.booleans())
def test_any_shape(cpu_isa: str, leading: list[int], width: int, residual: bool) -> None:
    inputs = make_inputs((*leading, width), torch.float32, residual)
    actual = residual_layer_norm(**inputs)
    expected = residual_layer_norm_reference(**in_float64(inputs))
    torch.testing.assert_close(actual[0], expected[0].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual[1], expected[1].float())


def test_the_sum_is_empty_unless_asked_for() -> None:
    inputs = make_inputs((5, 17), torch.float32)
    normalized, total = residual_layer_norm(**inputs)
    alone, nothing = residual_layer_norm(**(inputs | {"return_sum": False}))
    assert torch.equal(alone, normalized) and nothing.shape == (0,) and total.shape == (5, 17)


def test_the_sum_is_a_tensor_of_its_own() -> None:
    inputs = make_inputs((5, 17), torch.float32, residual=False)
    for call in (residual_layer_norm, residual_layer_norm_reference):
        total = call(**inputs)[1]
        assert torch.equal(total, inputs["input"]) and total.data_ptr() != inputs["input"].data_ptr()


def test_any_layout(cpu_isa: str) -> None:
    inputs = make_inputs((6, 7, 24), torch.float32)
    expected = residual_layer_norm(**inputs)
    strided = inputs | {
        "input": inputs["input"].transpose(0, 2).contiguous().transpose(0, 2),
        "residual": inputs["residual"].transpose(0, 1).contiguous().transpose(0, 1),
        "weight": torch.stack([inputs["weight"], inputs["bias"]], 1)[:, 0],
        "bias": torch.stack([inputs["weight"], inputs["bias"]], 1)[:, 1],
    }
    actual = residual_layer_norm(**strided)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_and_threads_change_no_bit(cpu_isa: str, dtype: torch.dtype, with_threads: Callable) -> None:
    inputs = make_inputs((257, 384), dtype)
    whole = with_threads(1, lambda inputs: residual_layer_norm(**inputs), inputs)
    for threads in (2, 3, 8):
        again = with_threads(threads, lambda inputs: residual_layer_norm(**inputs), inputs)
        assert torch.equal(again[0], whole[0]) and torch.equal(again[1], whole[1])
    for rows in range(1, 34):
        part = inputs | {name: inputs[name][-rows:] for name in ("input", "residual")}
        assert torch.equal(residual_layer_norm(**part)[0], whole[0][-rows:])


def test_not_a_number_stays_in_its_row(cpu_isa: str) -> None:
    inputs = make_inputs((3, 40), torch.float32)
    expected = residual_layer_norm(**inputs)[0]
    inputs["input"][1, 39] = torch.nan
    actual = residual_layer_norm(**inputs)[0]
    assert actual[1].isnan().all()
    assert torch.equal(actual[::2], expected[::2])


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("return_sum", [False, True], ids=["", "sum"])
def test_gradients_are_those_of_the_reference(residual: bool, return_sum: bool) -> None:
    inputs = make_inputs((4, 5, 24), torch.float32, residual) | {"return_sum": return_sum}
    leaves = [x.requires_grad_() for x in inputs.values() if isinstance(x, torch.Tensor)]
    grads = [torch.randn(4, 5, 24), torch.randn(4, 5, 24)][: 1 + return_sum]
    actual = torch.autograd.grad(residual_layer_norm(**inputs)[: 1 + return_sum], leaves, grads)
    expected = torch.autograd.grad(residual_layer_norm_reference(**inputs)[: 1 + return_sum], leaves, grads)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("return_sum", [False, True], ids=["", "sum"])
def test_the_backward_formula_is_the_gradient_of_the_reference(return_sum: bool) -> None:
    """In float64, which the kernel does not take: the formula, around the reference's forward."""
    from vleff.ops.residual_layer_norm import _backward, _save_for_backward

    class AroundReference(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return residual_layer_norm_reference(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
            _save_for_backward(ctx, inputs, output)

        backward = staticmethod(_backward)

    inputs = in_float64(make_inputs((3, 7), torch.float32))
    tensors = [x.requires_grad_() for x in inputs.values() if isinstance(x, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        return AroundReference.apply(*tensors, 1e-5, return_sum)[: 1 + return_sum]

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_gradient_of_the_sum_alone() -> None:
    inputs = make_inputs((4, 24), torch.float32)
    leaves = [inputs["input"].requires_grad_(), inputs["residual"].requires_grad_()]
    grad = torch.randn(4, 24)
    for leaf_grad in torch.autograd.grad(residual_layer_norm(**inputs)[1], leaves, grad):
        assert torch.equal(leaf_grad, grad)


@pytest.mark.parametrize("shape", [(20, 24), (2, 3, 17), (24,), (0, 24)], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_opcheck(shape: tuple[int, ...], requires_grad: bool) -> None:
    for residual in (False, True):
        inputs = make_inputs(shape, torch.float32, residual)
        for tensor in inputs.values():
            if isinstance(tensor, torch.Tensor):
                tensor.requires_grad_(requires_grad)
        for return_sum in (False, True):
            arguments = (inputs | {"return_sum": return_sum}).values()
            torch.library.opcheck(torch.ops.vleff.residual_layer_norm.default, tuple(arguments))


def test_compiles_to_one_graph_for_all_row_counts() -> None:
    torch._dynamo.reset()
    inputs = make_inputs((60, 24), torch.float32)
    compiled = torch.compile(residual_layer_norm, fullgraph=True, dynamic=True)
    for rows in (60, 7, 33):
        part = inputs | {name: inputs[name][:rows].clone() for name in ("input", "residual")}
        with torch._dynamo.config.patch(error_on_recompile=rows != 60):
            actual = compiled(**part)
        expected = residual_layer_norm(**part)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_counts_no_products() -> None:
    with FlopCounterMode(display=False) as counter:
        residual_layer_norm(**make_inputs((20, 24), torch.float32))
    assert counter.get_total_flops() == 0


WRONG: list[tuple[str, Any, str]] = [
    ("input", torch.zeros(()), r"expected .*\[\.\.\., width\], width at least 1, got float32 \[\]"),
    ("input", torch.zeros(4, 0), r"expected .* width at least 1, got float32 \[4, 0\]"),
    ("input", torch.zeros(4, 6, dtype=torch.float64), "expected float32, bfloat16 or float16"),
    ("residual", torch.zeros(6), r"expected float32 of the shape of 'input' .*, got float32 \[6\]"),
    ("residual", torch.zeros(4, 6, dtype=torch.float16), "expected float32 of the shape"),
    ("weight", torch.zeros(5), r"expected float32 \[6\] .*, got float32 \[5\]"),
    ("weight", torch.zeros(6, dtype=torch.bfloat16), r"expected float32 \[6\] .*, got bfloat16 \[6\]"),
    ("bias", torch.zeros(1, 6), r"expected float32 \[6\] .*, got float32 \[1, 6\]"),
    ("eps", -1.0, "expected a number of at least 0, got -1"),
    ("eps", float("nan"), "expected a number of at least 0, got nan"),
]


@pytest.mark.parametrize(("argument", "value", "message"), WRONG)
def test_wrong_arguments_are_named(argument: str, value: Any, message: str) -> None:
    valid = make_inputs((4, 6), torch.float32)
    residual_layer_norm(**valid)
    with pytest.raises(RuntimeError, match=f"residual_layer_norm: argument '{argument}': {message}"):
        residual_layer_norm(**(valid | {argument: value}))
