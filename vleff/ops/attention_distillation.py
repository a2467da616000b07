"""attention_distillation: how far a student's attention is from a teacher's, without the attention maps."""

from itertools import pairwise

import torch
from torch import Tensor


def attention_distillation(
    teacher_q: Tensor,
    teacher_k: Tensor,
    student_q: Tensor,
    student_k: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    *,
    teacher_scale: float | None = None,
    student_scale: float | None = None,
) -> Tensor:
    """The divergence of a student's attention from a teacher's, for samples of any lengths: DiDE, section 2.3.

    The queries of sample b are the rows q_offsets[b] to q_offsets[b + 1], its keys the rows k_offsets[b] to
    k_offsets[b + 1]; teacher and student have the same tokens. For query i, in each head:

        P[i, j] = softmax over the sample's keys j of teacher_scale * <teacher_q[i], teacher_k[j]>
        Q[i, j] = softmax over the sample's keys j of student_scale * <student_q[i], student_k[j]>
        out[i]  = sum over j of P[i, j] * (log P[i, j] - log Q[i, j])

    Queries of samples without keys have out 0 and gradients 0. The teacher is a constant: gradients flow to
    student_q and student_k only.

    Everything is computed in float32, but bfloat16 operands may be multiplied as they are. No attention map is
    stored, in backward neither: memory is linear in the number of tokens. Differentiable once. A sample's results
    have the same bits in every batch and at every number of threads.

    Args:
        teacher_q: [total_q, heads, teacher_dim], float32, bfloat16 or float16; teacher_dim at most 256. The last
            dimension is contiguous, the others have any strides: views of a fused projection need no copy.
        teacher_k: [total_k, heads, teacher_dim], as teacher_q.
        student_q: [total_q, heads, student_dim], the dtype of teacher_q; student_dim at most 256.
        student_k: [total_k, heads, student_dim], as student_q.
        q_offsets, k_offsets: int32 [batch + 1], from 0 to total_q and total_k, never descending.
        max_q, max_k: at least the longest sample's queries and keys; known without reading the device.
        teacher_scale, student_scale: factors of the logits; teacher_dim ** -0.5 and student_dim ** -0.5 if None.

    Returns:
        float32 [total_q, heads], in nats.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device, layout or value; the message names the
            argument, what was expected and what came.
        ValueError: a gradient of the teacher is asked for.
    """
    if torch.is_grad_enabled():
        for name, operand in (("teacher_q", teacher_q), ("teacher_k", teacher_k)):
            if operand.requires_grad:
                raise ValueError(
                    f"attention_distillation: argument {name!r}: expected a constant, as no gradient flows to the "
                    "teacher, got a tensor that requires grad: detach it"
                )
    return attention_distillation_reference(
        teacher_q,
        teacher_k,
        student_q,
        student_k,
        q_offsets,
        k_offsets,
        max_q,
        max_k,
        teacher_scale=teacher_scale,
        student_scale=student_scale,
    )


def attention_distillation_reference(
    teacher_q: Tensor,
    teacher_k: Tensor,
    student_q: Tensor,
    student_k: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    *,
    teacher_scale: float | None = None,
    student_scale: float | None = None,
) -> Tensor:
    """The formulas of `attention_distillation` in plain torch, sample by sample.

    Takes and returns the same, except that any floating-point dtype goes, float64 included, and that everything
    is computed and returned in the dtype of student_q.
    """
    teacher_scale = teacher_q.shape[-1] ** -0.5 if teacher_scale is None else teacher_scale
    student_scale = student_q.shape[-1] ** -0.5 if student_scale is None else student_scale
    sums = [student_q.new_zeros(0, student_q.shape[1])]
    for query_rows, key_rows in zip(_rows(q_offsets), _rows(k_offsets), strict=True):
        teacher = _log_attention(teacher_q.detach()[query_rows], teacher_k.detach()[key_rows], teacher_scale)
        student = _log_attention(student_q[query_rows], student_k[key_rows], student_scale)
        sums.append((teacher.exp() * (teacher - student)).sum(-1).transpose(0, 1))
    return torch.cat(sums)


def _log_attention(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[queries, heads, dim] and [keys, heads, dim] -> log softmax over the keys [heads, queries, keys]"""
    logits = scale * torch.einsum("qhd,khd->hqk", queries, keys)
    return logits.log_softmax(-1)


def _rows(offsets: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(offsets.tolist())]
