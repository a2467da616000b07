"""Inputs of attention_distillation, and gradients, shared by its tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attention_cases import Inputs, offsets_of
from torch import Tensor

from vleff.ops import attention_distillation_reference

OPERANDS = ("teacher_q", "teacher_k", "student_q", "student_k")
STUDENT = ("student_q", "student_k")

# Names and arguments of `make_inputs`.
SHAPES: dict[str, dict[str, Any]] = {
    "one token": {"q_lengths": [1], "k_lengths": [1], "teacher_dim": 64},
    "one key": {"q_lengths": [5, 2], "k_lengths": [1, 1]},
    "17 tokens, head size 40": {"q_lengths": [17, 5], "k_lengths": [3, 17], "heads": 3, "teacher_dim": 40},
    "text and image": {"q_lengths": [40, 11], "k_lengths": [145, 145], "teacher_dim": 64},
    "image and text": {"q_lengths": [145, 145], "k_lengths": [40, 11], "teacher_dim": 64},
    "other sizes": {"q_lengths": [9, 50], "k_lengths": [49, 2], "teacher_dim": 80, "student_dim": 24},
    "head sizes 1 and 256": {"q_lengths": [19], "k_lengths": [5], "teacher_dim": 1, "student_dim": 256},
    "empty samples": {"q_lengths": [0, 3, 4, 0], "k_lengths": [2, 0, 6, 0]},
}
NOTHING: dict[str, dict[str, Any]] = {
    "no samples": {"q_lengths": [], "k_lengths": []},
    "only empty samples": {"q_lengths": [0, 0], "k_lengths": [0, 0]},
    "no queries": {"q_lengths": [0, 0], "k_lengths": [3, 4]},
    "no keys": {"q_lengths": [3, 4], "k_lengths": [0, 0]},
}


def make_inputs(
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    heads: int = 2,
    teacher_dim: int = 16,
    student_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    outliers: bool = True,
    **options: Any,
) -> Inputs:
    """Random rows; with outliers some columns of queries and others of keys are 20 times as large."""
    student_dim = teacher_dim if student_dim is None else student_dim
    inputs: Inputs = {}
    for side, width in (("teacher", teacher_dim), ("student", student_dim)):
        for operand, lengths, large in (("q", q_lengths, slice(12, None, 13)), ("k", k_lengths, slice(15, None, 16))):
            rows = torch.randn(sum(lengths), heads, width)
            rows[..., large] *= 20 if outliers else 1
            inputs[f"{side}_{operand}"] = rows.to(dtype)
    return inputs | {
        "q_offsets": offsets_of(q_lengths),
        "k_offsets": offsets_of(k_lengths),
        "max_q": max(q_lengths, default=0),
        "max_k": max(k_lengths, default=0),
        **options,
    }


def in_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same numbers in another dtype."""
    return inputs | {name: inputs[name].to(dtype) for name in OPERANDS}


def exact(inputs: Inputs) -> Tensor:
    """The reference's result in float64."""
    return attention_distillation_reference(**in_dtype(inputs, torch.float64))


def gradients(function: Callable[..., Tensor], inputs: Inputs, grad: Tensor) -> dict[str, Tensor]:
    """Gradients of <result, grad> in the student's operands."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in STUDENT}
    result = function(**inputs | leaves)
    found = torch.autograd.grad(result, list(leaves.values()), grad.to(result.dtype), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def exact_gradients(inputs: Inputs, grad: Tensor) -> dict[str, Tensor]:
    return gradients(attention_distillation_reference, in_dtype(inputs, torch.float64), grad)
