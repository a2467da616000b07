"""copy_attention: words that a decoder generates from its vocabulary or copies from two ragged memories."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class CopyMemory(NamedTuple):
    """What a decoder can copy from, for a batch of samples of any lengths.

    Attributes:
        keys: [total, width], float32, bfloat16 or float16: the keys of sample b are the rows offsets[b] to
            offsets[b + 1].
        ids: int32 [total], the word at each position, a number of the extended vocabulary: the decoder's words
            come first, then words that only the sample's memories have.
        offsets: int32 [batch + 1], from 0 to total, never descending.
        max_length: at least the longest sample's positions; known without reading the device.
    """

    keys: Tensor
    ids: Tensor
    offsets: Tensor
    max_length: int


def copy_attention(
    queries: Tensor,
    query_offsets: Tensor,
    max_queries: int,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    generate_log_probs: Tensor,
    targets: Tensor,
    *,
    scale: float | None = None,
    coverage: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target words that are generated or copied.

    Target t of sample b, one of the rows query_offsets[b] to query_offsets[b + 1], attends to the sample's two
    memories m; j are their positions:

        attention_m[t, j] = softmax over j of scale * <queries[t], keys_m[j]>
        gate[t]           = softmax of gate_logits[t]: (generate, copy from question, copy from paragraph)
        P[t]              = gate[t, 0] * exp(generate_log_probs[t])
                            + sum over m of gate[t, m] * sum over j with ids_m[j] = targets[t] of attention_m[t, j]
        log_probs[t]      = log P[t]

    and with c_m[t] the sum of attention_m over the targets of the same sample before t,

        coverage_loss[t]  = sum over m and j of min(attention_m[t, j], c_m[t, j])

    The paper of the pair-to-sequence model (arXiv 1906.06045) does not give these formulas: the mixture is that
    of pointer-generator networks (arXiv 1704.04368, equations 9 and 12) with one more source.

    The gate to a memory without positions is closed: its logit counts as -inf. All sums are taken over logarithms,
    so that probabilities far below the smallest number keep their logarithm. A target that can neither be generated
    nor copied has log_probs -inf and gradients 0. Differentiable once, in queries, keys, gate_logits and
    generate_log_probs, through both results. Attention is recomputed in backward: memory is linear in the number of
    targets and positions. A sample's results have the same bits in every batch and at every number of threads.

    Args:
        queries: [targets, width], float32, bfloat16 or float16.
        query_offsets: int32 [batch + 1], from 0 to targets, never descending.
        max_queries: at least the longest sample's targets; known without reading the device.
        question, paragraph: the memories; keys of the dtype of `queries`.
        gate_logits: [targets, 3], the dtype of `queries`.
        generate_log_probs: float32 [targets], the logarithm of the probability with which the decoder's own
            vocabulary generates the target, as from `vocabulary_log_probs`; -inf for words that it lacks.
        targets: int32 or int64 [targets], numbers of the extended vocabulary.
        scale: factor of the attention's logits; width ** -0.5 if None.
        coverage: whether the coverage loss is wanted.

    Returns:
        log_probs: float32 [targets].
        coverage_loss: float32 [targets]; empty unless asked for.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device, layout or value; the message names the
            argument, what was expected and what came.
    """
    return copy_attention_reference(
        queries,
        query_offsets,
        max_queries,
        question,
        paragraph,
        gate_logits,
        generate_log_probs,
        targets,
        scale=scale,
        coverage=coverage,
    )


def copy_attention_rows(
    queries: Tensor,
    query_offsets: Tensor,
    max_queries: int,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    vocabulary_logits: Tensor,
    extended_size: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """Log-probabilities of all words of the extended vocabulary: `copy_attention` for beam search.

    The probabilities are those of `copy_attention` with generate_log_probs = log_softmax(vocabulary_logits), for
    each word as the target. The queries of a sample are its beams, which share its memories; a sample may have any
    number of them, none too. Not differentiable.

    Args:
        queries, query_offsets, max_queries, question, paragraph, gate_logits, scale: as `copy_attention`.
        vocabulary_logits: [rows, words], the dtype of `queries`, of the decoder's own vocabulary.
        extended_size: number of words of the extended vocabulary, at least `words`.

    Returns:
        float32 [rows, extended_size]; -inf for words that can neither be generated nor copied.

    Raises:
        RuntimeError: as `copy_attention`; ids must be below extended_size.
    """
    return copy_attention_rows_reference(
        queries,
        query_offsets,
        max_queries,
        question,
        paragraph,
        gate_logits,
        vocabulary_logits,
        extended_size,
        scale=scale,
    )


def copy_attention_reference(
    queries: Tensor,
    query_offsets: Tensor,
    max_queries: int,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    generate_log_probs: Tensor,
    targets: Tensor,
    *,
    scale: float | None = None,
    coverage: bool = False,
) -> tuple[Tensor, Tensor]:
    """The formulas of `copy_attention` in plain torch, sample by sample.

    Takes and returns the same, except that any floating-point dtype goes, float64 included, and that everything is
    computed and returned in the dtype of `queries`.
    """
    log_probs, losses = [queries.new_zeros(0)], [queries.new_zeros(0)]
    generate = generate_log_probs.to(queries.dtype)
    for sample, rows in enumerate(_rows(query_offsets)):
        attention, log_gate = _attend(sample, rows, queries, question, paragraph, gate_logits, scale)
        parts = [log_gate[:, 0] + generate[rows]]
        loss = queries.new_zeros(log_gate.shape[0])
        for number, (log_attention, ids) in enumerate(attention, 1):
            matches = ids == targets[rows, None]  # [targets, positions]
            copied = _log_sum_exp(log_attention, matches)
            parts.append(log_gate[:, number] + copied)
            weights = log_attention.exp()
            covered = weights.cumsum(0) - weights
            loss = loss + torch.minimum(weights, covered).sum(1)
        log_probs.append(_log_sum_exp(torch.stack(parts, 1)))
        losses.append(loss)
    return torch.cat(log_probs), torch.cat(losses) if coverage else queries.new_zeros(0)


def copy_attention_rows_reference(
    queries: Tensor,
    query_offsets: Tensor,
    max_queries: int,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    vocabulary_logits: Tensor,
    extended_size: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """The formulas of `copy_attention_rows` in plain torch; see `copy_attention_reference`."""
    words = vocabulary_logits.shape[1]
    generated = torch.nn.functional.pad(vocabulary_logits.log_softmax(1), (0, extended_size - words), value=-torch.inf)
    results = [queries.new_zeros(0, extended_size)]
    for sample, rows in enumerate(_rows(query_offsets)):
        attention, log_gate = _attend(sample, rows, queries, question, paragraph, gate_logits, scale)
        log_probs = log_gate[:, :1] + generated[rows]
        for number, (log_attention, ids) in enumerate(attention, 1):
            for position, word in enumerate(ids.tolist()):
                copied = log_gate[:, number] + log_attention[:, position]
                log_probs[:, word] = torch.logaddexp(log_probs[:, word], copied)
        results.append(log_probs)
    return torch.cat(results)


def _attend(
    sample: int,
    rows: slice,
    queries: Tensor,
    question: CopyMemory,
    paragraph: CopyMemory,
    gate_logits: Tensor,
    scale: float | None,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """For both memories of a sample the logarithm of attention [rows, positions] and ids; log gate [rows, 3]."""
    scale = queries.shape[1] ** -0.5 if scale is None else scale
    attention, is_open = [], [True]
    for memory in (question, paragraph):
        positions = slice(*memory.offsets[sample : sample + 2].tolist())
        logits = scale * queries[rows] @ memory.keys[positions].T
        attention.append((logits.log_softmax(1), memory.ids[positions]))
        is_open.append(positions.start < positions.stop)
    closed = ~torch.tensor(is_open, device=queries.device)
    return attention, gate_logits[rows].masked_fill(closed, -torch.inf).log_softmax(1)


def _log_sum_exp(values: Tensor, chosen: Tensor | None = None) -> Tensor:
    """log of the sum of exp over the last dimension; where it is -inf, the gradient is 0 and not NaN."""
    finite = values > -torch.inf
    finite = finite if chosen is None else finite & chosen
    any_finite = finite.any(-1)
    masked = values.masked_fill(~finite, -torch.inf).masked_fill(~any_finite[..., None], 0)
    return masked.logsumexp(-1).masked_fill(~any_finite, -torch.inf) if values.shape[-1] else masked.sum(-1) - torch.inf


def _rows(offsets: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(offsets.tolist())]
