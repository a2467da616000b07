"""sum_rows: brings gradients of gathered rows back to the rows that were gathered."""

from typing import Any

import torch
from torch import Tensor

import vleff._library  # noqa: F401  registers torch.ops.vleff


def sum_rows(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    """The transpose of rows = stored_rows[index].

        sums[r] = sum over i with index[i] = r of rows[i]

    Sums are made in float32 in the order of i, without atomic additions, so that the same input gives the same bits
    at every run and number of threads; only the result is rounded. Differentiable.

    Args:
        rows: [count, width], float32, bfloat16 or float16.
        index: int32 or int64 [count], in [0, stored).
        stored: number of rows of the result.

    Returns:
        [stored, width], the dtype of `rows`; 0 in rows that are never named.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device or, on the CPU, a wrong value; the message names
            the argument, what was expected and what came.
    """
    return torch.ops.vleff.sum_rows(rows, index, stored)


def sum_rows_reference(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    """The formula of `sum_rows` in plain torch, in any floating-point dtype, on any device."""
    return rows.new_zeros(stored, rows.shape[1]).index_add(0, index, rows)


@torch.library.register_fake("vleff::sum_rows")
def _(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    return rows.new_empty(stored, rows.shape[1])


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad.index_select(0, ctx.saved_tensors[0]), None, None


torch.library.register_autograd("vleff::sum_rows", _backward, setup_context=_save)
