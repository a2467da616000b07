"""top_words: the largest values of each row, always the same ones where values are equal."""

import torch
from torch import Tensor

from vleff.ops.by_torch import check_tensor, reject, runs_on_cuda


def top_words(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest words of each row, for beam search.

    torch.topk leaves open which of equal values it takes, and its choice changes with the size of the rows; here those
    that stand first are taken, so that columns of -inf behind them change nothing. Not differentiable.

    Args:
        rows: float32 [rows, words].
        count: of words of each row; few, as time grows with its square.

    Returns:
        values: float32 [rows, count], the largest first, never NaN; -inf where a row has no more.
        words: int64 [rows, count]; 0 where a row has no more.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what
            was expected and what came.
    """
    with torch.no_grad():
        return torch.ops.vleff.top_words(rows, count)


def top_words_reference(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch, in any floating-point dtype."""
    padded = torch.nn.functional.pad(rows.nan_to_num(-torch.inf, torch.inf, -torch.inf), (0, count), value=-torch.inf)
    values, words = padded.sort(dim=1, descending=True, stable=True)
    values, words = values[:, :count].contiguous(), words[:, :count]
    return values, words.masked_fill(values == -torch.inf, 0)


def top_words_by_torch(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As torch.ops.vleff.top_words: float32 [rows, count] and int64 [rows, count]."""
    check_tensor("top_words", "rows", rows, [torch.float32], ("rows", "words"), rows.device)
    if count < 0:
        reject("top_words", "count", "at least 0", count)
    return top_words_reference(rows, count)


runs_on_cuda("top_words", top_words_by_torch)


@torch.library.register_fake("vleff::top_words")
def _(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape[0], count), rows.new_empty(rows.shape[0], count, dtype=torch.int64)
