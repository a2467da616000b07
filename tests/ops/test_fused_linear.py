"""fused_linear against its reference in float64, its independence of batch and threads, and its rules for torch."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import (
    fused_linear,
    fused_linear_reference,
    pack_linear_weight,
    packs_linear_weight,
    unpack_linear_weight,
)
from vleff.ops.fused_linear import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned_memory")
PACKABLE = [dtype for dtype in (torch.float32, torch.bfloat16) if packs_linear_weight(dtype)]
ROW_COUNTS = [*range(1, 65), 100, 129, 255, 257, 500, 777, 2048, 4097, 6144, 6145]


def make_inputs(
    shape: tuple[int, ...], out_features: int, dtype: torch.dtype, residual: bool = False
) -> dict[str, Any]:
    """With outliers, without which sums of random numbers hide errors."""
    in_features = shape[-1]
    input = torch.randn(shape, dtype=torch.float64)
    input[..., in_features // 2] *= 20
    weight = torch.randn(out_features, in_features, dtype=torch.float64) / max(in_features, 1) ** 0.5
    inputs = {"input": input, "weight": weight, "bias": torch.randn(out_features, dtype=torch.float64)}
    if residual:
        inputs["residual"] = torch.randn(*shape[:-1], out_features, dtype=torch.float64)
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def assert_within_twice_plain(inputs: dict[str, Any], actual: torch.Tensor) -> None:
    exact = fused_linear_reference(**in_float64(inputs))
    plain = fused_linear_reference(**inputs)
    error, plain_error = ((x.double() - exact).abs().max() for x in (actual, plain))
    rounding = torch.finfo(actual.dtype).eps * exact.abs().max()
    assert error <= 2 * plain_error + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_is_at_most_twice_plain_torch(activation: str, residual: bool, dtype: torch.dtype) -> None:
    for shape, out_features in [((40, 96), 80), ((3, 7, 17), 33), ((64, 384), 1), ((129, 1), 5)]:
        inputs = make_inputs(shape, out_features, dtype, residual) | {"activation": activation}
        out = fused_linear(**inputs)
        assert out.dtype == dtype and out.shape == (*shape[:-1], out_features) and out.is_contiguous()
        assert_within_twice_plain(inputs, out)


@given(
    leading=st.lists(st.integers(0, 20), max_size=3),
    in_features=st.integers(1, 70),
    out_features=st.integers(0, 70),
    activation=st.sampled_from(ACTIVATIONS),
    residual=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape(
    leading: list[int],
    in_features: int,
    out_features: int,
    activation: str,
    residual: bool,
    dtype: torch.dtype,
) -> None:
    inputs = make_inputs((*leading, in_features), out_features, dtype, residual)
    out = fused_linear(**inputs, activation=activation)
    exact = fused_linear_reference(**in_float64(inputs), activation=activation)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, exact.to(dtype), rtol=tolerance, atol=10 * tolerance)


def test_without_bias_and_without_input_features() -> None:
    input, weight = torch.randn(20, 24), torch.randn(8, 24)
    torch.testing.assert_close(fused_linear(input, weight), input @ weight.T)
    bias = torch.randn(8)
    torch.testing.assert_close(fused_linear(input[:, :0], weight[:, :0], bias), bias.expand(20, 8))


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
def test_quick_gelu_at_every_level(cpu_isa: str, dtype: torch.dtype) -> None:
    """Its kernel is our own; a linear layer that changes nothing shows it alone."""
    one = torch.ones(1, 1, dtype=dtype)
    numbers = torch.cat([torch.linspace(-150, 150, 20011), torch.linspace(-6, 6, 20011)]).to(dtype)
    actual = fused_linear(numbers[:, None], one, activation="quick_gelu")[:, 0]
    exact = numbers.double() * torch.sigmoid(1.702 * numbers.double())
    # relative to the input: the exponential loses bits where the result is next to nothing
    assert ((actual.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * numbers.double().abs()).all()
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38, -3e38, 1e-40, -1e-40] * 3).to(dtype)
    actual = fused_linear(special[:, None], one, activation="quick_gelu")[:, 0]
    expected = fused_linear_reference(special[:, None], one, activation="quick_gelu")[:, 0]
    torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
def test_quick_gelu_has_the_same_bits_in_every_batch_and_with_any_threads(
    cpu_isa: str, dtype: torch.dtype, with_threads: Callable
) -> None:
    inputs = make_inputs((1200, 17), 33, dtype)
    input, weight, bias = inputs.values()
    whole = with_threads(1, fused_linear, input, weight, bias, None, "quick_gelu")
    for rows in (1, 2, 3, 15, 16, 17, 100, 777, 1200):
        for threads in (1, 2, 3, 8):
            part = with_threads(threads, fused_linear, input[-rows:], weight, bias, None, "quick_gelu")
            assert torch.equal(part, whole[-rows:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_and_infinity_spread_as_in_plain_torch(activation: str) -> None:
    inputs = make_inputs((20, 16), 24, torch.float32)
    inputs["input"][3, 4], inputs["input"][5, 6] = torch.nan, torch.inf
    actual = fused_linear(**inputs, activation=activation)
    expected = fused_linear_reference(**inputs, activation=activation)
    assert actual[3].isnan().all() and expected[3].isnan().all()
    assert torch.equal(actual[5] == torch.inf, expected[5] == torch.inf)
    untouched = [row for row in range(20) if row not in (3, 5)]
    torch.testing.assert_close(actual[untouched], expected[untouched])


def test_any_layout() -> None:
    inputs = make_inputs((4, 9, 32), 24, torch.float32, residual=True)
    expected = fused_linear(**inputs)
    strided = {
        "input": inputs["input"].transpose(0, 1).contiguous().transpose(0, 1),
        "weight": inputs["weight"].T.contiguous().T,
        "bias": torch.stack([inputs["bias"], inputs["bias"]], 1)[:, 0],
        "residual": inputs["residual"].transpose(0, 2).contiguous().transpose(0, 2),
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    assert torch.equal(fused_linear(**strided), expected)


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
@pytest.mark.parametrize("shape", [(384, 768), (1536, 96), (17, 33)], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = make_inputs((max(ROW_COUNTS), shape[0]), shape[1], dtype)
    input, weight, bias = inputs.values()
    packed = pack_linear_weight(weight)
    whole = fused_linear(input, weight, bias)
    for rows in ROW_COUNTS:
        assert torch.equal(fused_linear(input[-rows:], weight, bias), whole[-rows:])
        assert torch.equal(fused_linear(input[-rows:], packed, bias), whole[-rows:])


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
def test_pieces_take_their_residual_along(dtype: torch.dtype) -> None:
    inputs = make_inputs((13000, 48), 64, dtype, residual=True)
    whole = fused_linear(**inputs)
    parts = zip(inputs["input"].split(2500), inputs["residual"].split(2500), strict=True)
    separate = [fused_linear(i, inputs["weight"], inputs["bias"], r) for i, r in parts]
    assert torch.equal(whole, torch.cat(separate))


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
def test_threads_change_no_bit(dtype: torch.dtype, with_threads: Callable) -> None:
    for rows, (in_features, out_features) in [(16, (4096, 16)), (300, (768, 384)), (3000, (64, 96))]:
        inputs = make_inputs((rows, in_features), out_features, dtype, residual=True)
        expected = with_threads(1, lambda inputs: fused_linear(**inputs), inputs)
        for threads in (2, 3, 8):
            assert torch.equal(with_threads(threads, lambda inputs: fused_linear(**inputs), inputs), expected)


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (33, 17), (64, 64), (200, 1000)], ids=str)
def test_packing_is_undone_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape).to(dtype)
    weight.view(-1)[0] = torch.nan
    unpacked = unpack_linear_weight(pack_linear_weight(weight))
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(unpacked.view(bits), weight.view(bits))


def test_torch_still_has_the_private_ops_that_carry_this_one() -> None:
    """If this fails, a torch release dropped them: fused_linear works on, at the speed of plain torch."""
    assert packs_linear_weight(torch.float32)
    assert packs_linear_weight(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_without_the_private_ops_plain_torch_does_the_same() -> None:
    """A new process, in which the private op fails before the library has asked for it."""
    program = """
import torch
library = torch.library.Library("mkldnn", "IMPL")
def gone(*arguments): raise RuntimeError("gone")
library.impl("_reorder_linear_weight", gone, "CPU", allow_override=True)
from vleff.ops import fused_linear, fused_linear_reference, packs_linear_weight
assert not packs_linear_weight(torch.float32) and not packs_linear_weight(torch.bfloat16)
input, weight, bias, residual = torch.randn(40, 24), torch.randn(8, 24), torch.randn(8), torch.randn(40, 8)
for activation in ("none", "gelu", "gelu_tanh", "relu", "silu", "quick_gelu"):
    actual = fused_linear(input, weight, bias, residual, activation)
    expected = fused_linear_reference(input, weight, bias, residual, activation)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(fused_linear(input[:3], weight, bias, residual[:3], activation), expected[:3])
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation: str, residual: bool) -> None:
    inputs = make_inputs((2, 3, 5), 4, torch.float64, residual)
    tensors = [tensor.requires_grad_() for tensor in inputs.values()]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return fused_linear(**dict(zip(inputs, tensors, strict=True)), activation=activation)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_in_float32_are_those_of_the_reference(activation: str) -> None:
    inputs = make_inputs((40, 24), 33, torch.float32, residual=True)
    grad = torch.randn(40, 33)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    actual = torch.autograd.grad(fused_linear(**inputs, activation=activation), leaves, grad)
    expected = torch.autograd.grad(fused_linear_reference(**inputs, activation=activation), leaves, grad)
    torch.testing.assert_close(actual, expected)


def test_gradient_of_the_input_through_a_packed_weight() -> None:
    inputs = make_inputs((40, 24), 33, torch.float32)
    input, weight, bias = inputs.values()
    input.requires_grad_()
    grad = torch.randn(40, 33)
    (actual,) = torch.autograd.grad(fused_linear(input, pack_linear_weight(weight), bias, None, "gelu"), input, grad)
    (expected,) = torch.autograd.grad(fused_linear(input, weight, bias, None, "gelu"), input, grad)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", [(20, 24), (2, 3, 24), (24,), (0, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_opcheck(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> None:
    inputs = make_inputs(shape, 9, dtype, residual=True)
    arguments = [tensor.requires_grad_(requires_grad) for tensor in inputs.values()]
    for activation in ("none", "gelu"):
        torch.library.opcheck(torch.ops.vleff.fused_linear.default, (*arguments, activation))
        torch.library.opcheck(torch.ops.vleff.fused_linear.default, (*arguments[:2], None, None, activation))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_compiles_to_one_graph_for_all_row_counts(packed: bool) -> None:
    torch._dynamo.reset()
    inputs = make_inputs((60, 24), 33, torch.float32, residual=True)
    input, weight, bias, residual = inputs.values()
    weight = pack_linear_weight(weight) if packed else weight
    compiled = torch.compile(fused_linear, fullgraph=True, dynamic=True)
    for rows in (60, 7, 33):
        arguments = input[:rows].clone(), weight, bias, residual[:rows].clone()
        with torch._dynamo.config.patch(error_on_recompile=rows != 60):
            actual = compiled(*arguments)
        assert torch.equal(actual, fused_linear(*arguments))


def test_works_with_fake_tensors_of_another_device() -> None:
    with torch._subclasses.FakeTensorMode():
        out = fused_linear(torch.empty(3, 4, device="cuda"), torch.empty(5, 4, device="cuda"))
    assert out.shape == (3, 5) and out.device.type == "cuda"


def test_counts_two_operations_a_multiply_add() -> None:
    for rows, counted in [(20, 20), (3, 16), (0, 0)]:
        with FlopCounterMode(display=False) as counter:
            fused_linear(torch.randn(rows, 24), torch.randn(9, 24))
        assert counter.get_total_flops() == 2 * counted * 24 * 9


VALID = {
    "input": torch.zeros(4, 6),
    "weight": torch.zeros(5, 6),
    "bias": torch.zeros(5),
    "residual": torch.zeros(4, 5),
    "activation": "relu",
}
WRONG: list[tuple[str, Any, str]] = [
    ("input", torch.zeros(()), r"expected .*\[\.\.\., in_features\], got float32 \[\]"),
    ("input", torch.zeros(4, 6, dtype=torch.int64), "expected float32, bfloat16, float16 or float64"),
    ("weight", torch.zeros(5, 7), r"expected \[out_features, 6\], got float32 \[5, 7\]"),
    ("weight", torch.zeros(6), r"expected \[out_features, 6\], got float32 \[6\]"),
    ("weight", torch.zeros(5, 6, dtype=torch.bfloat16), "expected float32, the dtype of 'input'"),
    ("bias", torch.zeros(4), r"expected \[5\], got float32 \[4\]"),
    ("bias", torch.zeros(5, 1), r"expected \[5\], got float32 \[5, 1\]"),
    ("bias", torch.zeros(5, dtype=torch.float16), "expected float32, the dtype of 'input', got float16"),
    ("residual", torch.zeros(4, 6), "expected the shape of 'input' with 5 as its last size"),
    ("residual", torch.zeros(5), "expected the shape of 'input' with 5 as its last size"),
    ("residual", torch.zeros(4, 5, dtype=torch.float64), "expected float32, the dtype of 'input'"),
    ("activation", "tanh", "expected none, gelu, gelu_tanh, relu, silu or quick_gelu, got 'tanh'"),
]


@pytest.mark.parametrize(("argument", "value", "message"), WRONG)
def test_wrong_arguments_are_named(argument: str, value: Any, message: str) -> None:
    fused_linear(**VALID)
    with pytest.raises(RuntimeError, match=f"fused_linear: argument '{argument}': {message}"):
        fused_linear(**(VALID | {argument: value}))


def test_wrong_weights_for_packing_are_named() -> None:
    weight = torch.zeros(4, 6)
    for wrong in (weight.half(), weight[0], weight[:0], pack_linear_weight(weight)):
        with pytest.raises(RuntimeError, match="pack_linear_weight: argument 'weight': expected a plain"):
            pack_linear_weight(wrong)
    with pytest.raises(RuntimeError, match="unpack_linear_weight: argument 'packed': expected a weight from"):
        unpack_linear_weight(weight)
    with pytest.raises(ValueError, match=r"argument 'activation': expected one of none, .*, got 'tanh'"):
        fused_linear_reference(weight, weight, activation="tanh")
