"""token_gather_attention and attention_distillation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vleff.ops import (
    attention_distillation,
    attention_distillation_reference,
    token_gather_attention,
    token_gather_attention_reference,
)
from vleff.self_test.case import Case, Draw, offsets_of

HEADS = 3
Q_LENGTHS, K_LENGTHS = (5, 0, 70, 3, 2), (7, 4, 90, 1, 0)
LONGEST = {"max_q": max(Q_LENGTHS), "max_k": max(K_LENGTHS)}
# one for each size that CUDA kernels are compiled for; rows of 20 and 100 are not aligned in all dtypes
HEAD_DIMS = (20, 64, 100, 200)


def cases() -> Iterator[Case]:
    """Every head size, every option."""
    for head_dim in HEAD_DIMS:
        yield Case(
            "token_gather_attention",
            f"head size {head_dim}",
            token_gather_attention,
            token_gather_attention_reference,
            _attention(head_dim, sum(Q_LENGTHS), sum(K_LENGTHS)),
        )
    yield _all_options()
    for head_dim in HEAD_DIMS:
        yield _distillation(head_dim)


def _attention(head_dim: int, q_rows: int, k_rows: int) -> dict[str, Tensor | int]:
    draw = Draw(head_dim)
    return {
        "q": draw.leaf(q_rows, HEADS, head_dim),
        "k": draw.leaf(k_rows, HEADS, head_dim),
        "v": draw.leaf(k_rows, HEADS, head_dim),
        "q_offsets": offsets_of(Q_LENGTHS),
        "k_offsets": offsets_of(K_LENGTHS),
        **LONGEST,
    }


def _all_options() -> Case:
    draw = Draw(1)
    total_q, total_k = sum(Q_LENGTHS), sum(K_LENGTHS)
    key_bias = draw.constant(total_k).float()
    key_bias[draw.chances(0.2, total_k)] = -torch.inf
    options = {
        "q_index": draw.integers(total_q, total_q),
        "k_index": draw.integers(total_k + 9, total_k, dtype=torch.int64),
        "head_mask": draw.chances(0.7, len(Q_LENGTHS), HEADS),
        "key_bias": key_bias.requires_grad_(),
        "scale": 0.2,
        "causal": True,
        "dropout_p": 0.25,
        "seed": torch.tensor([7]),
        "importance": True,
    }
    arguments = _attention(64, total_q, total_k + 9) | options
    return Case(
        "token_gather_attention", "all options", token_gather_attention, token_gather_attention_reference, arguments
    )


def _distillation(head_dim: int) -> Case:
    draw = Draw(head_dim)
    total_q, total_k = sum(Q_LENGTHS), sum(K_LENGTHS)
    arguments = {
        "teacher_q": draw.constant(total_q, HEADS, head_dim),
        "teacher_k": draw.constant(total_k, HEADS, head_dim),
        "student_q": draw.leaf(total_q, HEADS, head_dim + 12),
        "student_k": draw.leaf(total_k, HEADS, head_dim + 12),
        "q_offsets": offsets_of(Q_LENGTHS),
        "k_offsets": offsets_of(K_LENGTHS),
        **LONGEST,
    }
    return Case(
        "attention_distillation",
        f"head size {head_dim}",
        attention_distillation,
        attention_distillation_reference,
        arguments,
    )
