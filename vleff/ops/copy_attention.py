"""copy_attention: words that a decoder generates from its vocabulary or copies from two ragged memories."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.ragged_offsets import sample_lengths, sample_rows


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
    log_probs, coverage_loss, _ = torch.ops.vleff.copy_attention(
        queries,
        query_offsets,
        max_queries,
        *question,
        *paragraph,
        gate_logits,
        generate_log_probs,
        targets,
        scale=_default_scale(queries) if scale is None else scale,
        coverage=coverage,
    )
    return log_probs, coverage_loss


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
    with torch.no_grad():
        return torch.ops.vleff.copy_attention_rows(
            queries,
            query_offsets,
            max_queries,
            *question,
            *paragraph,
            gate_logits,
            vocabulary_logits,
            extended_size,
            scale=_default_scale(queries) if scale is None else scale,
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
    none = queries[:0].sum(1)
    log_probs, losses = [none], [none]
    generate = generate_log_probs.to(queries.dtype)
    for sample, rows in enumerate(sample_rows(query_offsets)):
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
    return torch.cat(log_probs), torch.cat(losses) if coverage else none


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
    for sample, rows in enumerate(sample_rows(query_offsets)):
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
    scale = _default_scale(queries) if scale is None else scale
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


def _default_scale(queries: Tensor) -> float:
    # the op itself rejects queries without columns
    return queries.shape[-1] ** -0.5 if queries.dim() and queries.shape[-1] else 1.0


def copy_attention_flops(
    query_lengths: Sequence[int], question_lengths: Sequence[int], paragraph_lengths: Sequence[int], width: int
) -> int:
    """Floating-point operations of the forward pass: the products of queries and keys, two a multiply-add.

    The backward pass has three times as many. `copy_attention_rows` has as many as the forward pass.

    Args:
        query_lengths, question_lengths, paragraph_lengths: of each sample.
        width: of queries and keys.
    """
    lengths = zip(query_lengths, question_lengths, paragraph_lengths, strict=True)
    return 2 * width * sum(queries * (question + paragraph) for queries, question, paragraph in lengths)


@torch.library.register_fake("vleff::copy_attention")
def _(queries: Tensor, *arguments: Any, coverage: bool = False, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = queries.shape[0]
    return (
        queries.new_empty(rows, dtype=torch.float32),
        queries.new_empty(rows if coverage else 0, dtype=torch.float32),
        queries.new_empty(rows, 2, 4, dtype=torch.float32),
    )


@torch.library.register_fake("vleff::copy_attention_backward")
def _(
    grad_log_probs: Tensor,
    grad_coverage_loss: Tensor | None,
    log_probs: Tensor,
    statistics: Tensor,
    queries: Tensor,
    *arguments: Any,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    question_keys, paragraph_keys, gate_logits, generate_log_probs = (arguments[i] for i in (2, 6, 10, 11))
    return (
        queries.new_empty(queries.shape),
        question_keys.new_empty(question_keys.shape),
        paragraph_keys.new_empty(paragraph_keys.shape),
        gate_logits.new_empty(gate_logits.shape),
        generate_log_probs.new_empty(generate_log_probs.shape),
    )


@torch.library.register_fake("vleff::copy_attention_rows")
def _(queries: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], arguments[-1], dtype=torch.float32)


def _save_for_backward(ctx: Any, inputs: tuple, keyword_only_inputs: dict[str, Any], output: tuple) -> None:
    ctx.tensors = [i for i, argument in enumerate(inputs) if isinstance(argument, Tensor)]
    ctx.bounds = {i: argument for i, argument in enumerate(inputs) if not isinstance(argument, Tensor)}
    ctx.scale, ctx.coverage = keyword_only_inputs["scale"], keyword_only_inputs["coverage"]
    log_probs, coverage_loss, statistics = output
    ctx.save_for_backward(log_probs, statistics, *(inputs[i] for i in ctx.tensors))
    ctx.mark_non_differentiable(statistics, *(() if ctx.coverage else (coverage_loss,)))


def _backward(ctx: Any, grad_log_probs: Tensor, grad_coverage_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    log_probs, statistics, *tensors = ctx.saved_tensors
    inputs = ctx.bounds | dict(zip(ctx.tensors, tensors, strict=True))
    grad_queries, grad_question, grad_paragraph, grad_gate, grad_generate = torch.ops.vleff.copy_attention_backward(
        grad_log_probs,
        grad_coverage_loss if ctx.coverage else None,
        log_probs,
        statistics,
        *(inputs[i] for i in range(len(inputs))),
        scale=ctx.scale,
    )
    none = None
    return (
        *(grad_queries, none, none),
        *(grad_question, none, none, none),
        *(grad_paragraph, none, none, none),
        *(grad_gate, grad_generate, none),
    )


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "copy_attention: second derivatives: expected a graph that is differentiated once, got a gradient of its "
        "gradient. copy_attention_reference has them."
    )


torch.library.register_autograd("vleff::copy_attention", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("vleff::copy_attention_backward", _no_second_derivative)


def _flops_of_call(queries: Tensor, query_offsets: Tensor, max_queries: int, *memories: Any) -> int:
    _, _, question_offsets, max_question, _, _, paragraph_offsets, max_paragraph = memories[:8]
    return copy_attention_flops(
        sample_lengths(query_offsets, max_queries),
        sample_lengths(question_offsets, max_question),
        sample_lengths(paragraph_offsets, max_paragraph),
        queries.shape[1],
    )


@register_flop_formula([torch.ops.vleff.copy_attention, torch.ops.vleff.copy_attention_rows], get_raw=True)
def _(*arguments: Any, **options: Any) -> int:
    return _flops_of_call(*arguments)


@register_flop_formula(torch.ops.vleff.copy_attention_backward, get_raw=True)
def _(
    grad_log_probs: Tensor,
    grad_coverage_loss: Tensor | None,
    log_probs: Tensor,
    statistics: Tensor,
    *arguments: Any,
    **options: Any,
) -> int:
    return 3 * _flops_of_call(*arguments)
