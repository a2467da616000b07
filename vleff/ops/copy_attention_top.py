"""copy_attention_top: the likeliest words of copy_attention's rows, without the rows."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
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


def _copy_attention_top_on_cuda(queries: Tensor, *arguments: Any, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """By the kernel of `copy_attention_rows`, in float32."""

    def widened(argument: Any) -> Any:
        is_wide = isinstance(argument, Tensor) and argument.is_floating_point()
        return argument.float() if is_wide else argument

    *memories, hidden, weight, bias, extended_size, count, watched = map(widened, arguments)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    rows = torch.ops.vleff.copy_attention_rows(queries.float(), *memories, logits, extended_size, scale=scale)
    return (*top_words_reference(rows, count), rows[:, watched].clone())


torch.library.impl("vleff::copy_attention_top", "cuda", _copy_attention_top_on_cuda)


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
