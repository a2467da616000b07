"""head_masked_linear against the dense products of all heads: 12 heads of 64, width 768.

Weights are packed on the CPU, and plain on the GPU.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from vleff.ops import (
    fused_linear,
    head_masked_project,
    head_masked_project_reference,
    head_masked_reduce,
    head_masked_reduce_reference,
    pack_head_masked_weight,
    pack_linear_weight,
    packs_linear_weight,
)
from vleff.ops.head_masked_linear import head_masked_linear_flops

HEADS, WIDTH = 12, 768
LENGTHS = {
    "8 x 577 tokens": [577] * 8,
    "64 x 40 tokens": [40] * 64,
    "32 x 4-400 tokens": torch.randint(4, 401, (32,), generator=torch.Generator().manual_seed(0)).tolist(),
}
KEPT = {"all heads": HEADS, "half of the heads": HEADS // 2}
# speedup to reach over the dense product
TARGETS = {"all heads": 0.95, "half of the heads": 1.9}
TRAINING_TARGETS = {"all heads": 0.9, "half of the heads": 1.6}


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, device: torch.device) -> Iterator[int]:
    if device.type == "cuda" and request.param > 1:
        pytest.skip("threads of the CPU do not matter on the GPU")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Case:
    """Tokens, the projections of query, key and value, the output projection, and which heads samples keep."""

    def __init__(self, lengths: list[int], kept: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        order = torch.rand(len(lengths), HEADS).argsort(1)
        self.mask = torch.zeros(len(lengths), HEADS, dtype=torch.bool).scatter(1, order[:, :kept], True)
        self.tokens = torch.randn(sum(lengths), WIDTH).to(dtype)
        self.residual = torch.randn(sum(lengths), WIDTH).to(dtype)
        self.qkv = (torch.randn(3 * WIDTH, WIDTH) * WIDTH**-0.5).to(dtype)
        self.output = (torch.randn(WIDTH, WIDTH) * WIDTH**-0.5).to(dtype)
        self.qkv_bias, self.output_bias = torch.randn(3 * WIDTH).to(dtype), torch.randn(WIDTH).to(dtype)

    def flops(self, features: int) -> int:
        return head_masked_linear_flops(features, WIDTH, self.offsets, self.mask, len(self.tokens))


@pytest.fixture(params=LENGTHS)
def lengths(request: pytest.FixtureRequest) -> list[int]:
    return LENGTHS[request.param]


def for_fused_linear(weight: Tensor) -> Tensor:
    return pack_linear_weight(weight) if weight.is_cpu and packs_linear_weight(weight.dtype) else weight


def for_head_masked(weight: Tensor, direction: str, parts: int = 1) -> Tensor:
    return pack_head_masked_weight(weight, direction, HEADS, parts) if weight.is_cpu else weight


def check(ours: Tensor, exact: Tensor, plain: Tensor) -> None:
    error, plain_error = ((y.double() - exact).square().mean().sqrt() for y in (ours, plain))
    assert error <= 2 * plain_error, f"error {error:.1e} against fp64, torch has {plain_error:.1e}"


@pytest.mark.benchmark(group="head_masked_linear: query, key and value")
@pytest.mark.parametrize("kept", KEPT)
def test_project(
    interleaved: Callable[..., None],
    threads: int,
    lengths: list[int],
    kept: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    with device:
        case = Case(lengths, KEPT[kept], dtype)
    packed = for_head_masked(case.qkv, "project", 3)
    dense = for_fused_linear(case.qkv)

    def ours() -> Tensor:
        return head_masked_project(case.tokens, packed, case.offsets, case.mask, case.qkv_bias, parts=3)

    baselines = {
        "fused_linear": lambda: fused_linear(case.tokens, dense, case.qkv_bias),
        "torch": lambda: linear(case.tokens, case.qkv, case.qkv_bias),
    }
    with torch.inference_mode():
        tensors = (case.tokens, case.qkv, case.qkv_bias)
        exact, plain = (
            head_masked_project_reference(x, weight, case.offsets, case.mask, bias, parts=3)
            for x, weight, bias in ([t.double() for t in tensors], tensors)
        )
        check(ours(), exact, plain)
        interleaved(ours, baselines, {"fused_linear": TARGETS[kept]}, 3, case.flops(3 * WIDTH))


@pytest.mark.benchmark(group="head_masked_linear: output projection with residual")
@pytest.mark.parametrize("kept", KEPT)
def test_reduce(
    interleaved: Callable[..., None],
    threads: int,
    lengths: list[int],
    kept: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    with device:
        case = Case(lengths, KEPT[kept], dtype)
    packed = for_head_masked(case.output, "reduce")
    dense = for_fused_linear(case.output)

    def ours() -> Tensor:
        return head_masked_reduce(case.tokens, packed, case.offsets, case.mask, case.output_bias, case.residual)

    baselines = {
        "fused_linear": lambda: fused_linear(case.tokens, dense, case.output_bias, case.residual),
        "torch": lambda: linear(case.tokens, case.output, case.output_bias) + case.residual,
    }
    with torch.inference_mode():
        tensors = (case.tokens, case.output, case.output_bias, case.residual)
        exact, plain = (
            head_masked_reduce_reference(x, weight, case.offsets, case.mask, bias, residual)
            for x, weight, bias, residual in ([t.double() for t in tensors], tensors)
        )
        check(ours(), exact, plain)
        interleaved(ours, baselines, {"fused_linear": TARGETS[kept]}, 3, case.flops(WIDTH))


@pytest.mark.benchmark(group="head_masked_linear: query, key and value, forward and backward, 8 x 577 tokens, fp32")
@pytest.mark.parametrize("kept", KEPT)
def test_training(interleaved: Callable[..., None], kept: str, device: torch.device) -> None:
    with device:
        case = Case(LENGTHS["8 x 577 tokens"], KEPT[kept], torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (case.tokens, case.qkv, case.qkv_bias)]
    grad = torch.randn(len(case.tokens), 3 * WIDTH, device=device)

    def ours() -> tuple[Tensor, ...]:
        out = head_masked_project(case.tokens, case.qkv, case.offsets, case.mask, case.qkv_bias, parts=3)
        return torch.autograd.grad(out, leaves, grad)

    def dense() -> tuple[Tensor, ...]:
        return torch.autograd.grad(linear(*leaves), leaves, grad)

    def reference() -> tuple[Tensor, ...]:
        out = head_masked_project_reference(case.tokens, case.qkv, case.offsets, case.mask, case.qkv_bias, parts=3)
        return torch.autograd.grad(out, leaves, grad)

    for actual, expected in zip(ours(), reference(), strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)
    baselines = {"torch, all heads": dense, "torch, masked": reference}
    interleaved(ours, baselines, {"torch, all heads": TRAINING_TARGETS[kept]}, 6, 3 * case.flops(3 * WIDTH))
