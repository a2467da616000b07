"""copy_attention_top: the likeliest words of copy_attention's rows, without the rows."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vleff.ops.by_torch import FLOATS, check_tensor, reject, runs_on_cuda
from vleff.ops.copy_attention import CopyMemory, copy_attention_rows_reference
from vleff.ops.top_words import top_words_reference


def copy_attention_top(
    queries: Tensor,
    query_offsets: Tensor,
    max_queries: int,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extended_size: int,
    count: int,
    watched: int,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of beam search: what `top_words` finds in `copy_attention_rows`.

    With logits = hidden @ weight.T + bias. These are made in blocks that stay in the cache; neither they nor the
    probabilities of all words are stored. Of equal words those with the smallest numbers are taken. Not
    differentiable. A row's results have the same bits in every batch and at every number of threads.

    Args:
        queries, query_offsets, max_queries, question, paragraph, gate_logits, scale: as of `copy_attention_rows`.
        hidden: [rows, hidden width], the dtype of `queries`.
        weight: [words, hidden width], the dtype of `queries`; words at least 1.
        bias: [words], the dtype of `queries`, or None.
        extended_size: number of words of the extended vocabulary, at least `words`; ids must be below it.
        count: of words of each row; few, as time grows with its square.
        watched: a word of the decoder's own vocabulary whose probability is wanted in any case.

    Returns:
        log_probs: float32 [rows, count], the largest first; -inf where a row has no more.
        words: int64 [rows, count]; 0 where a row has no more.
        watched_log_probs: float32 [rows].

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device, layout or value; the message names the
            argument, what was expected and what came.
    """
    if scale is None:  # the op itself rejects queries without columns
        scale = queries.shape[-1] ** -0.5 if queries.dim() and queries.shape[-1] else 1.0
    with torch.no_grad():
        return torch.ops.vleff.copy_attention_top(
            queries,
            query_offsets,
            max_queries,
            *question,
            *paragraph,
            gate_logits,
            hidden,
            weight,
            bias,
            extended_size,
            count,
            watched,
            scale=scale,
        )


def copy_attention_top_reference(
    queries: Tensor,
    query_offsets: Tensor,
    max_queries: int,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extended_size: int,
    count: int,
    watched: int,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, in the dtype of `queries`; float64 goes too."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    memories = question, paragraph
    rows = copy_attention_rows_reference(
        queries, query_offsets, max_queries, *memories, gate_logits, logits, extended_size, scale=scale
    )
    return (*top_words_reference(rows, count), rows[:, watched])


def copy_attention_top_by_rows(queries: Tensor, *arguments: Any, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.ops.vleff.copy_attention_top, but by the rows of all words. They are float32, as the op's logits are.

    Returns:
        log_probs: float32 [rows, count]; words: int64 [rows, count]; watched_log_probs: float32 [rows].
    """
    *memories, gate_logits, hidden, weight, bias, extended_size, count, watched = arguments
    _check(queries, memories, gate_logits, hidden, weight, bias, count, watched)
    wide = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in (*memories, gate_logits)]
    logits = torch.nn.functional.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
    rows = torch.ops.vleff.copy_attention_rows(queries.float(), *wide, logits, extended_size, scale=scale)
    return (*top_words_reference(rows, count), rows[:, watched].clone())


def _check(
    queries: Tensor,
    memories: list[Any],
    gate_logits: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    count: int,
    watched: int,
) -> None:
    """What copy_attention_rows cannot see, as it is given float32 and logits."""
    op, dtype, device = "copy_attention_top", [queries.dtype], queries.device
    check_tensor(op, "queries", queries, FLOATS, ("rows", "width"), device)
    rows, width = queries.shape
    check_tensor(op, "question_keys", memories[2], dtype, ("total", width), device)
    check_tensor(op, "paragraph_keys", memories[6], dtype, ("total", width), device)
    check_tensor(op, "gate_logits", gate_logits, dtype, (rows, 3), device)
    check_tensor(op, "hidden", hidden, dtype, (rows, "hidden width"), device)
    if hidden.shape[1] < 1:
        reject(op, "hidden", "at least one column", list(hidden.shape))
    check_tensor(op, "weight", weight, dtype, ("words", hidden.shape[1]), device)
    words = weight.shape[0]
    if words < 1:
        reject(op, "weight", "at least one word", list(weight.shape))
    check_tensor(op, "bias", bias, dtype, (words,), device)
    if count < 0:
        reject(op, "count", "at least 0", count)
    if not 0 <= watched < words:
        reject(op, "watched", f"a word in [0, {words})", watched)


runs_on_cuda("copy_attention_top", copy_attention_top_by_rows)


@torch.library.register_fake("vleff::copy_attention_top")
def _(queries: Tensor, *arguments: Any, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    rows, count = queries.shape[0], arguments[-2]
    return (
        queries.new_empty(rows, count, dtype=torch.float32),
        queries.new_empty(rows, count, dtype=torch.int64),
        queries.new_empty(rows, dtype=torch.float32),
    )


@register_flop_formula(torch.ops.vleff.copy_attention_top)
def _(queries_shape: torch.Size, *arguments: Any, scale: float, **options: Any) -> int:
    """Two operations a multiply-add of the product with the vocabulary, by far the largest."""
    weight_shape = arguments[12]
    return 2 * queries_shape[0] * weight_shape[0] * weight_shape[1]
