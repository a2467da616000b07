"""Inputs of masked_linear, shared by its tests."""

from typing import Any

import torch

from vleff.ops import MaskedStructure


def make_inputs(
    rows: int,
    columns: int,
    share: float,
    tokens: int,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Rows of very different density, some empty unless all elements are there; outliers in the input.

    Args:
        sizes: of the structure's chunks and blocks.
    """
    mask = (torch.rand(rows, columns) < share) & (torch.rand(rows, 1) < 0.8)
    if share == 1.0:
        mask.fill_(True)
    structure = MaskedStructure.from_mask(mask, *(sizes or (None, None))).check()
    input = torch.randn(tokens, columns)
    input[:, columns // 2] *= 20
    return {
        "input": input.to(dtype),
        "values": structure.gather(torch.randn(rows, columns)).to(dtype),
        "structure": structure,
        "bias": torch.randn(rows).to(dtype),
        "residual": torch.randn(tokens, rows).to(dtype),
    }
