"""head_masked_linear: products with the weights of those attention heads that each sample keeps.

`head_masked_project` makes the heads' vectors from tokens (query, key and value projections); `head_masked_reduce`
brings them back to the model's width (output projection).
"""

import torch
from torch import Tensor
from torch.nn import functional


def head_masked_project(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    parts: int = 1,
    heads: int | None = None,
) -> Tensor:
    """Projects each token to the heads that its sample keeps.

    Token t belongs to the sample b with offsets[b] <= t < offsets[b + 1]. With weight and output seen as blocks
    [parts, heads, head_dim]:

        out[t, p, h] = input[t] @ weight[p, h].T + bias[p, h]    where head_mask[b, h], else 0

    With `index`, token t is row index[t] of `input`. Rows may be named several times or never.

    Args:
        input: [rows, d_in], float32, bfloat16 or float16.
        weight: [parts * heads * head_dim, d_in], the dtype of `input`.
        offsets: int32 [batch + 1], from 0 to the number of tokens, never descending.
        head_mask: bool [batch, heads], False where a head is dropped; None keeps all.
        bias: [parts * heads * head_dim], the dtype of `input`, or None.
        index: int32 or int64 [tokens], row numbers. Without it the tokens are the rows.
        parts: projections that share the head mask, stacked in `weight`: 3 for query, key and value.
        heads: number of heads, where `head_mask` does not tell it; it changes no result.

    Returns:
        [tokens, parts * heads * head_dim], contiguous, the dtype of `input`.
    """
    return head_masked_project_reference(input, weight, offsets, head_mask, bias, index, parts, heads)


def head_masked_reduce(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Sums over the heads that a token's sample keeps.

    With b the sample of token t, and input[t] and the columns of `weight` seen as blocks [heads, head_dim]:

        out[t] = residual[t] + bias + sum over h with head_mask[b, h] of input[t, h] @ weight[:, h].T

    What dropped blocks of `input` hold does not matter; it may be NaN.

    Args:
        input: [tokens, heads * head_dim], float32, bfloat16 or float16.
        weight: [d_out, heads * head_dim], the dtype of `input`.
        offsets: int32 [batch + 1], from 0 to the number of tokens, never descending.
        head_mask: bool [batch, heads], False where a head is dropped; None keeps all.
        bias: [d_out], the dtype of `input`, or None.
        residual: [tokens, d_out], the dtype of `input`, or None.

    Returns:
        [tokens, d_out], contiguous, the dtype of `input`.
    """
    return head_masked_reduce_reference(input, weight, offsets, head_mask, bias, residual)


def head_masked_project_reference(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    parts: int = 1,
    heads: int | None = None,
) -> Tensor:
    """The formula of `head_masked_project` in plain torch, in any floating-point dtype."""
    tokens = input if index is None else input.index_select(0, index)
    out = functional.linear(tokens, weight, bias)
    if head_mask is None:
        return out
    kept = _kept_heads(offsets, head_mask, tokens.shape[0])
    blocks = out.unflatten(-1, (parts, head_mask.shape[1], -1))
    return torch.where(kept[:, None, :, None], blocks, 0).flatten(1)


def head_masked_reduce_reference(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The formula of `head_masked_reduce` in plain torch, in any floating-point dtype."""
    if head_mask is not None:
        kept = _kept_heads(offsets, head_mask, input.shape[0])
        blocks = input.unflatten(-1, (head_mask.shape[1], -1))
        input = torch.where(kept[:, :, None], blocks, 0).flatten(1)
    out = functional.linear(input, weight, bias)
    return out if residual is None else residual + out


def _kept_heads(offsets: Tensor, head_mask: Tensor, tokens: int) -> Tensor:
    """bool [tokens, heads]"""
    return head_mask.repeat_interleave(offsets.diff(), 0, output_size=tokens)
