"""Inputs of vocabulary_log_probs, shared by its tests."""

from typing import Any

import torch


def make_inputs(
    rows: int, width: int, words: int, dtype: torch.dtype = torch.float32, bias: bool = True
) -> dict[str, Any]:
    """Random rows with outliers; about a tenth of the targets are words beyond the vocabulary."""
    hidden = torch.randn(rows, width)
    hidden[..., 12::13] *= 10
    return {
        "hidden": hidden.to(dtype),
        "weight": (torch.randn(words, width) * width**-0.5).to(dtype),
        "bias": torch.randn(words).to(dtype) if bias else None,
        "targets": torch.randint(words + words // 9 + 1, (rows,)),
    }
