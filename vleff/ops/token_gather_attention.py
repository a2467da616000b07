"""token_gather_attention: attention within the samples of a ragged batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.ops.debug import checks_values
from vleff.ops.dropout import dropout_keep, round_to_float32
from vleff.ops.ragged_offsets import has_data, sample_lengths, sample_rows

Result = tuple[Tensor, Tensor, Tensor]


def token_gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    *,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    head_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    importance: bool = False,
) -> Result:
    """Attention of each sample's queries to the same sample's keys, for samples of any lengths.

    The queries of sample b are the rows q_offsets[b] to q_offsets[b + 1] of the batch, its keys and values
    the rows k_offsets[b] to k_offsets[b + 1]. For query i and key j of one sample, in each head:

        logits[i, j]  = scale * <q[i], k[j]> + key_bias[j]
        lse[i]        = log(sum over j of exp(logits[i, j]))
        P[i, j]       = exp(logits[i, j] - lse[i])
        out[i]        = sum over j of keep[i, j] / (1 - dropout_p) * P[i, j] * v[j]
        importance[j] = sum over i of P[i, j]

    With `q_index` row r of the batch is row q_index[r] of q, gathered while it is loaded; `k_index` does the
    same for k and v. Rows may be named several times or never: gradients are summed in the batch's order.

    Queries without a visible key (empty samples, -inf biases, causal), and heads that `head_mask` drops, have
    out 0, lse -inf, importance 0 and gradients 0. A dropped (sample, head) costs nothing.

    Everything is computed in float32, but bfloat16 operands may be multiplied as they are, P rounded to
    bfloat16 among them. Differentiable once, in q, k, v and key_bias, through out and lse. A sample's results
    have the same bits in every batch and at every number of threads.

    Args:
        q: [rows_q, heads, head_dim], float32, bfloat16 or float16; head_dim at most 256. The last dimension
            is contiguous, the others have any strides: views of a fused projection need no copy.
        k, v: [rows_k, heads, head_dim], as q.
        q_offsets, k_offsets: int32 [batch + 1], from 0 to total_q and total_k, never descending.
        max_q, max_k: at least the longest sample's queries and keys; known without reading the device.
        q_index, k_index: int32 or int64 [total_q] and [total_k], row numbers. Without them total_q is rows_q
            and total_k is rows_k.
        head_mask: bool [batch, heads], False where a head is dropped.
        key_bias: float32 [total_k], finite or -inf, added to a key's logits in every head.
        scale: factor of the logits; head_dim ** -0.5 if None.
        causal: whether query i sees only the keys j <= i + keys - queries: aligned at the last query and key.
            (The flag of `scaled_dot_product_attention` aligns the first ones; equal lengths do not differ.)
        dropout_p: probability in [0, 1) with which an attention is dropped.
        seed: int64, one element, of the dropout pattern that `vleff.ops.dropout` defines; the pattern depends
            on the sample's number in the batch. If None and dropout_p > 0, drawn from torch's generator.
        importance: whether to sum the attention that each key receives.

    Returns:
        out [total_q, heads, head_dim] as q;
        lse float32 [total_q, heads];
        importance float32 [total_k, heads], not differentiable; empty unless asked for.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or layout, or, on the CPU, a wrong value;
            the message names the argument, what was expected and what came.
    """
    if scale is None:  # the op itself rejects q without columns
        scale = q.shape[-1] ** -0.5 if q.dim() and q.shape[-1] else 1.0
    if seed is None and dropout_p > 0:
        seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=q.device)
    if not q.is_cpu and not torch.compiler.is_compiling() and checks_values():
        _check_values(q, k, q_offsets, k_offsets, max_q, max_k, q_index, k_index, head_mask, key_bias)
    return torch.ops.vleff.token_gather_attention(
        q,
        k,
        v,
        q_offsets,
        k_offsets,
        max_q,
        max_k,
        q_index,
        k_index,
        head_mask,
        key_bias,
        seed,
        scale=scale,
        causal=causal,
        dropout_p=dropout_p,
        importance=importance,
    )


def _check_values(q: Tensor, k: Tensor, *arguments: Any) -> None:
    """Runs the CPU op, which checks values, on the arguments and on heads of one element."""
    queries, keys = (torch.zeros(x.shape[0], x.shape[1], 1) for x in (q, k))
    arguments = tuple(x.cpu() if isinstance(x, Tensor) else x for x in arguments)
    torch.ops.vleff.token_gather_attention(queries, keys, keys, *arguments, scale=1.0)


def token_gather_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    *,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    head_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    importance: bool = False,
) -> Result:
    """The formulas of `token_gather_attention` in plain torch, sample by sample.

    Takes and returns the same, except that any floating-point dtype goes, float64 included, that everything
    is computed and returned in the dtype of q, and that `seed` must be there if dropout_p > 0.
    """
    if seed is None and dropout_p > 0:
        raise ValueError("seed: expected an int64 tensor with one element, as dropout_p > 0, got None")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = q if q_index is None else q[q_index]
    k, v = (k, v) if k_index is None else (k[k_index], v[k_index])
    kept_scale = 1 / (1 - round_to_float32(dropout_p))
    outs, lses, importances = [], [], []
    for sample, (query_rows, key_rows) in enumerate(zip(sample_rows(q_offsets), sample_rows(k_offsets), strict=True)):
        queries, keys, values = (x.transpose(0, 1) for x in (q[query_rows], k[key_rows], v[key_rows]))
        heads, query_count, key_count = queries.shape[0], queries.shape[1], keys.shape[1]

        logits = scale * queries @ keys.transpose(1, 2)  # [heads, queries, keys]
        visible = torch.ones_like(logits, dtype=torch.bool)
        if causal:
            visible = visible.tril(key_count - query_count)
        if head_mask is not None:
            visible = visible & head_mask[sample, :, None, None]
        if key_bias is not None:
            bias = key_bias[key_rows].to(q.dtype)
            visible = visible & (bias > -torch.inf)
            logits = logits + bias
        logits = logits.masked_fill(~visible, -torch.inf)

        # Rows without a visible key are kept out of the formulas, whose gradients there would be NaN.
        any_visible = visible.any(-1, keepdim=True)
        logits = logits.masked_fill(~any_visible, 0)
        lse = logits.logsumexp(-1, keepdim=True)
        attention = (logits - lse).exp().masked_fill(~any_visible, 0)
        kept = attention
        if seed is not None and dropout_p > 0:
            keep = dropout_keep(int(seed), sample, heads, query_count, key_count, dropout_p)
            kept = attention * keep * kept_scale

        outs.append((kept @ values).transpose(0, 1))
        lses.append(lse.masked_fill(~any_visible, -torch.inf).squeeze(-1).transpose(0, 1))
        importances.append(attention.detach().sum(1).transpose(0, 1))
    out = torch.cat([q[:0], *outs])
    lse = torch.cat([q.new_empty(0, q.shape[1]), *lses])
    return out, lse, torch.cat([q.new_empty(0, q.shape[1]), *importances]) if importance else q.new_empty(0)


def token_gather_attention_flops(
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    heads: int,
    head_dim: int,
    head_mask: Tensor | None = None,
    causal: bool = False,
) -> int:
    """Floating-point operations of the forward pass; the backward pass has 2.5 times as many.

    Counts the two matrix products, two operations a multiply-add, over the visible (query, key) pairs.

    Args:
        q_lengths, k_lengths: queries and keys of each sample.
        heads, head_dim: sizes.
        head_mask: bool [batch, heads]; dropped heads cost nothing.
        causal: as in `token_gather_attention`.
    """
    kept_heads = [heads] * len(q_lengths) if head_mask is None else head_mask.sum(1).tolist()
    pairs = 0
    for queries, keys, kept in zip(q_lengths, k_lengths, kept_heads, strict=True):
        pairs += kept * (_causal_pairs(queries, keys) if causal else queries * keys)
    return 4 * head_dim * pairs


def _causal_pairs(queries: int, keys: int) -> int:
    """The last min(queries, keys) queries see keys - (that many) + 1, ..., keys keys."""
    seeing = min(queries, keys)
    return seeing * (keys - seeing) + seeing * (seeing + 1) // 2


@torch.library.register_fake("vleff::token_gather_attention")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    head_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    dropout_p: float = 0.0,
    importance: bool = False,
) -> Result:
    heads, head_dim = q.shape[1:]
    total_q = q.shape[0] if q_index is None else q_index.numel()
    total_k = k.shape[0] if k_index is None else k_index.numel()
    return (
        q.new_empty(total_q, heads, head_dim),
        q.new_empty(total_q, heads, dtype=torch.float32),
        q.new_empty((total_k, heads) if importance else (0,), dtype=torch.float32),
    )


@torch.library.register_fake("vleff::token_gather_attention_backward")
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *arguments: Any,
    key_bias_grad: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total_k = 0
    if key_bias_grad:
        k_index = arguments[7]
        total_k = k.shape[0] if k_index is None else k_index.numel()
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    return grad_q, grad_k, grad_v, q.new_empty(total_k, dtype=torch.float32)


def _save_for_backward(ctx: Any, inputs: tuple, keyword_only_inputs: dict[str, Any], output: Result) -> None:
    q, k, v, q_offsets, k_offsets, ctx.max_q, ctx.max_k, q_index, k_index, head_mask, key_bias, seed = inputs
    out, lse, importance = output
    ctx.key_bias_needs_grad = key_bias is not None and key_bias.requires_grad
    ctx.options = {name: keyword_only_inputs[name] for name in ("scale", "causal", "dropout_p")}
    ctx.save_for_backward(q, k, v, out, lse, q_offsets, k_offsets, q_index, k_index, head_mask, key_bias, seed)
    ctx.mark_non_differentiable(importance)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, q_offsets, k_offsets, q_index, k_index, head_mask, key_bias, seed = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_key_bias = torch.ops.vleff.token_gather_attention_backward(
        torch.zeros_like(out) if grad_out is None else grad_out,
        grad_lse,
        q,
        k,
        v,
        out,
        lse,
        q_offsets,
        k_offsets,
        ctx.max_q,
        ctx.max_k,
        q_index,
        k_index,
        head_mask,
        key_bias,
        seed,
        **ctx.options,
        key_bias_grad=ctx.key_bias_needs_grad,
    )
    if not ctx.key_bias_needs_grad:
        grad_key_bias = None
    return grad_q, grad_k, grad_v, *(None,) * 7, grad_key_bias, None


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "token_gather_attention: second derivatives: expected a graph that is differentiated once, got a "
        "gradient of its gradient. token_gather_attention_reference has them."
    )


torch.library.register_autograd("vleff::token_gather_attention", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("vleff::token_gather_attention_backward", _no_second_derivative)


def _flops_of_call(
    q: Tensor,
    k_offsets: Tensor,
    q_offsets: Tensor,
    max_q: int,
    max_k: int,
    head_mask: Tensor | None,
    causal: bool,
) -> int:
    """Reads the lengths; tensors without data count as if every sample had the longest sample's lengths."""
    q_lengths, k_lengths = sample_lengths(q_offsets, max_q), sample_lengths(k_offsets, max_k)
    if not has_data(q_offsets):
        head_mask = None
    heads, head_dim = q.shape[1:]
    return token_gather_attention_flops(q_lengths, k_lengths, heads, head_dim, head_mask, causal)


@register_flop_formula(torch.ops.vleff.token_gather_attention, get_raw=True)
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    head_mask: Tensor | None = None,
    *arguments: Any,
    causal: bool = False,
    **options: Any,
) -> int:
    return _flops_of_call(q, k_offsets, q_offsets, max_q, max_k, head_mask, causal)


@register_flop_formula(torch.ops.vleff.token_gather_attention_backward, get_raw=True)
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    *arguments: Any,
    causal: bool = False,
    **options: Any,
) -> int:
    q_offsets, k_offsets, max_q, max_k, _, _, head_mask = (*arguments, None, None, None)[4:11]
    return _flops_of_call(q, k_offsets, q_offsets, max_q, max_k, head_mask, causal) * 5 // 2
