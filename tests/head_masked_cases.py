"""Inputs of head_masked_linear and yardsticks for its results, shared by its tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vleff.ops import (
    head_masked_project,
    head_masked_project_reference,
    head_masked_reduce,
    head_masked_reduce_reference,
)

Inputs = dict[str, Any]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIRECTIONS = {
    "project": (head_masked_project, head_masked_project_reference),
    "reduce": (head_masked_reduce, head_masked_reduce_reference),
}
DIFFERENTIABLE = ("input", "weight", "bias", "residual")
# Arguments of `make_inputs`: one token, 17 tokens, head sizes and widths on and off vectors, panels and blocks, empty
# samples, more tokens than a block, one head.
SHAPES: dict[str, dict[str, Any]] = {
    "one token": {"lengths": [1], "heads": 2, "head_dim": 64, "width": 96},
    "17 tokens, head size 40": {"lengths": [17, 5], "heads": 3, "head_dim": 40, "width": 100},
    "head size 1": {"lengths": [3, 9], "heads": 5, "head_dim": 1, "width": 7},
    "head size 33": {"lengths": [7, 30, 2], "heads": 2, "head_dim": 33, "width": 65},
    "head size 80": {"lengths": [16, 31], "heads": 3, "head_dim": 80, "width": 129},
    "empty samples": {"lengths": [0, 3, 0, 0, 4, 0], "heads": 4, "head_dim": 16, "width": 64},
    "long and short": {"lengths": [230, 1, 2, 90], "heads": 4, "head_dim": 64, "width": 256},
    "one head of 600": {"lengths": [20, 11], "heads": 1, "head_dim": 600, "width": 40},
}
NOTHING: dict[str, list[int]] = {"no samples": [], "only empty samples": [0, 0]}


def offsets_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def make_mask(batch: int, heads: int) -> Tensor:
    """Random, but the first sample keeps all heads, the second all but one dropped, the third none."""
    mask = torch.rand(batch, heads) < 0.5
    mask[:1] = True
    mask[1:2] = torch.arange(heads) == heads - 1
    mask[2:3] = False
    return mask


def make_inputs(
    direction: str,
    lengths: Sequence[int],
    heads: int = 3,
    head_dim: int = 16,
    width: int = 48,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Inputs:
    """Random tensors with outliers, a mask as of `make_mask`, 3 parts to project, a residual to reduce."""
    tokens, parts = sum(lengths), 3 if direction == "project" else 1
    features = parts * heads * head_dim
    sizes = (width, features) if direction == "project" else (features, width)
    input = torch.randn(tokens, sizes[0])
    input[:, sizes[0] // 2] *= 20
    inputs = {
        "input": input.to(dtype),
        "weight": (torch.randn(sizes[1], sizes[0]) * sizes[0] ** -0.5).to(dtype),
        "offsets": offsets_of(lengths),
        "head_mask": make_mask(len(lengths), heads),
        "bias": torch.randn(sizes[1]).to(dtype),
    }
    inputs |= {"parts": parts} if direction == "project" else {"residual": torch.randn(tokens, width).to(dtype)}
    return inputs | options


def kept_tokens(inputs: Inputs) -> Tensor:
    """bool [tokens, heads]"""
    return inputs["head_mask"].repeat_interleave(inputs["offsets"].diff(), 0)


def in_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same numbers in another dtype."""
    return inputs | {name: inputs[name].to(dtype) for name in DIFFERENTIABLE if inputs.get(name) is not None}


def gradients(function: Callable[..., Tensor], inputs: Inputs, grad: Tensor) -> dict[str, Tensor]:
    """Gradients of <out, grad> in all floating-point inputs."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in DIFFERENTIABLE if inputs.get(name) is not None}
    out = function(**inputs | leaves)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype)), strict=True))


def assert_within_twice_plain(actual: Tensor, plain: Tensor, exact: Tensor, what: object = None) -> None:
    """FlashAttention's rule: at most twice the error of plain torch, up to the rounding of the largest number."""
    assert actual.shape == exact.shape and actual.dtype == plain.dtype
    if exact.numel() == 0:
        return
    error, plain_error = ((x.double() - exact).abs().max() for x in (actual, plain))
    assert error <= 2 * plain_error + torch.finfo(actual.dtype).eps * exact.abs().max(), what
