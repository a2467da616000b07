"""The packed Transformer layer that the model families share.

An accelerated layer is the transformers module itself, its class exchanged for a subclass defined in the
family's file: parameters, names, hooks and the original computation (`super().forward`) stay where they were.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from vleff._library import DEVICES
from vleff.models.head_projections import head_masked, project_kept_heads
from vleff.models.trimming import AttentionControl, Controls, Stream
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.masked_feed_forward import masked_feed_forward
from vleff.nn.masked_linear import MaskedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.ops.residual_layer_norm import residual_layer_norm
from vleff.ops.token_gather_attention import token_gather_attention

_PACKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_UNCOVERED_FLAGS = ("output_attentions", "use_cache")
_UNCOVERED_TENSORS = ("encoder_hidden_states", "past_key_values", "cache")  # a cache has either name


class AttentionParts(NamedTuple):
    """The pieces of one attention block of width d, under names of our own. Dropouts are probabilities.

    Either `query`, `key` and `value` are given or, where one module makes all three, `qkv`.
    """

    head_dim: int
    scale: float
    output: nn.Module  # [.., heads * head_dim] -> [.., d]
    norm: nn.Module
    query: nn.Module | None = None  # [.., d] -> [.., heads * head_dim], as key and value
    key: nn.Module | None = None
    value: nn.Module | None = None
    qkv: Any = None  # a module or a function, [.., d] -> [.., 3 * heads * head_dim]
    dropout: float = 0.0  # of the attention itself
    output_dropout: float = 0.0


class FeedForwardParts(NamedTuple):
    """The pieces of one feed-forward block of width d. Dropouts are probabilities."""

    intermediate: nn.Module  # [.., d] -> [.., intermediate size]
    activation: Any  # a module or a function; an identity where it is fused into `intermediate`
    output: nn.Module  # [.., intermediate size] -> [.., d]
    norm: nn.Module
    gate: nn.Module | None = None  # [.., d] -> [.., intermediate size], multiplies the activation
    activation_dropout: float = 0.0
    output_dropout: float = 0.0


class LayerParts(NamedTuple):
    """The blocks of one layer."""

    attention: AttentionParts
    feed_forward: FeedForwardParts
    cross_attention: AttentionParts | None = None


@dataclass(frozen=True)
class PackedContext:
    """What a packed layer has to know besides its tokens' values.

    Attributes:
        batch: the samples; of its values only their number counts.
        causal: whether a token sees only tokens up to its own.
        padded_bias: [batch, heads, length, length], added to the logits by the tokens' places in the padded
            batch, padding hidden. Attention then runs padded, by torch; everything else is packed.
        memory: the samples' tokens for cross attention, None if the layer has none in this call.
        own, cross: what self and cross attention leave out; None for nothing.
    """

    batch: RaggedBatch
    causal: bool = False
    padded_bias: torch.Tensor | None = None
    memory: RaggedBatch | None = None
    own: AttentionControl | None = None
    cross: AttentionControl | None = None


def trimmed_context(
    stream: Stream, controls: Controls, memory: Stream | None = None, causal: bool = False
) -> PackedContext:
    """The context of a layer that gets a stream, and what its blocks "own" and "cross" leave out."""
    return PackedContext(
        stream.tokens,
        causal=causal,
        memory=None if memory is None else memory.tokens,
        own=controls.get("own"),
        cross=controls.get("cross"),
    )


class PackedLayer(nn.Module):
    """A layer that runs packed; a call that cannot runs as transformers wrote it."""

    # whether transformers' layer returns a tuple whose first element are the hidden states
    returns_tuple: ClassVar[bool] = False
    # whether the family computes attention by itself, with a mask to add, past transformers' registry
    own_attention: ClassVar[bool] = False
    # whether its calls say is_causal=True, and a token then sees only tokens up to its own
    passes_is_causal: ClassVar[bool] = False
    # whether a model may do without it: a pooling head that its config leaves out
    optional: ClassVar[bool] = False

    @staticmethod
    def unsupported(layer: Any) -> str | None:
        """Why `layer`, of the transformers class, cannot run packed whatever its input; None if it can."""
        if getattr(layer, "chunk_size_feed_forward", 0):
            return f"chunk_size_feed_forward={layer.chunk_size_feed_forward} asks for a chunked feed-forward"
        return None

    def parts(self) -> LayerParts:
        raise NotImplementedError

    def uncalled(self) -> tuple[nn.Module, ...]:
        """The modules in the layer whose work the packed computation does without calling them."""
        raise NotImplementedError

    def forward_packed(self, values: torch.Tensor, context: PackedContext) -> torch.Tensor:
        """values [total_tokens, d] -> [total_tokens, d]"""
        raise NotImplementedError

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [total_tokens, d] with a PackedContext for the mask, or as transformers passes them."""
        if isinstance(attention_mask, PackedContext):
            return self.forward_packed(hidden_states, attention_mask)
        covered = runs_packed(hidden_states, attention_mask, args, kwargs, self.passes_is_causal)
        if not covered or self.has_inner_hooks():
            if self.own_attention:
                attention_mask = additive_mask(attention_mask, hidden_states.dtype)
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        context = PackedContext(batch, causal=self.passes_is_causal)
        output = batch.replace(self.forward_packed(batch.values, context)).unpack()
        return (output,) if self.returns_tuple else output

    def has_inner_hooks(self) -> bool:
        """Whether a module that is not called has hooks, which would not run."""
        return any(map(has_hooks, self.uncalled()))


class PostNormLayer(PackedLayer):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x)), as in BERT.

    With a memory, x = norm(x + cross_attention(x, memory)) comes between the two.
    """

    def forward_packed(self, values: torch.Tensor, context: PackedContext) -> torch.Tensor:
        parts, training = self.parts(), self.training
        values = self._attended(parts.attention, values, values, context.batch, context)
        if context.memory is not None and parts.cross_attention is not None:
            to_memory = PackedContext(context.batch, own=context.cross)
            memory = context.memory
            values = self._attended(parts.cross_attention, values, memory.values, memory, to_memory)
        return normalize(parts.feed_forward.norm, run_feed_forward(parts.feed_forward, values, training), values)

    def _attended(
        self,
        parts: AttentionParts,
        values: torch.Tensor,
        memory_values: torch.Tensor,
        memory: RaggedBatch,
        context: PackedContext,
    ) -> torch.Tensor:
        attended = attend(parts, values, memory_values, memory, context, self.training)
        return normalize(parts.norm, project_output(parts, attended, context, self.training), values)


class PreNormLayer(PackedLayer):
    """x = x + attention(norm(x)); x = x + feed_forward(norm(x)), as in ViT."""

    def forward_packed(self, values: torch.Tensor, context: PackedContext) -> torch.Tensor:
        parts, training = self.parts(), self.training
        attention, norm = parts.attention, parts.feed_forward.norm
        normalized = normalize(attention.norm, values)
        attended = attend(attention, normalized, normalized, context.batch, context, training)
        values = project_output(attention, attended, context, training, values)
        return run_feed_forward(parts.feed_forward, normalize(norm, values), training, values)


def runs_packed(
    hidden_states: torch.Tensor,
    attention_mask: Any,
    positional: tuple[Any, ...],
    arguments: dict[str, Any],
    is_causal: bool = False,
) -> bool:
    """Whether an encoder or layer call with these arguments is one that the packed computation covers.

    Args:
        is_causal: what the call's argument of that name has to be.
    """
    return (
        all(argument is None or argument is False for argument in positional)
        and is_padding_mask(attention_mask)
        and bool(arguments.get("is_causal")) == is_causal
        and not any(arguments.get(name) for name in _UNCOVERED_FLAGS)
        and all(arguments.get(name) is None for name in _UNCOVERED_TENSORS)
        and hidden_states.device.type in DEVICES
        and hidden_states.dtype in _PACKED_DTYPES
    )


def is_padding_mask(mask: Any) -> bool:
    """Whether a mask is None or bool [batch, length]."""
    return mask is None or (mask.dim() == 2 and mask.dtype == torch.bool)


def additive_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A padding mask as families with attention of their own add it: [batch, 1, 1, length]; others unchanged."""
    if mask is None or mask.dim() != 2:
        return mask
    visible = mask[:, None, None, :].bool()
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def hide_padding(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A bias [batch or 1, heads, length, length] with no key visible that a padding mask [batch, length] hides."""
    return bias if mask is None else bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)


_CAPTURING = "transformers.utils.output_capturing"
_SHARDING = "torch.distributed.fsdp._fully_shard"


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks besides those by which transformers itself captures hidden states."""
    return _has_hooks_besides(module, (_CAPTURING,))


def is_watched(layer: nn.Module) -> bool:
    """Whether someone looks at what a layer that is called gets or gives: not `fully_shard`, which gathers weights."""
    return _has_hooks_besides(layer, (_CAPTURING, _SHARDING))


def _has_hooks_besides(module: nn.Module, modules: tuple[str, ...]) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(
        not str(getattr(hook, "__module__", None)).startswith(modules)
        for group in hooks
        if group
        for hook in group.values()
    )


def attend(
    parts: AttentionParts,
    values: torch.Tensor,
    memory_values: torch.Tensor,
    memory: RaggedBatch,
    context: PackedContext,
    training: bool,
) -> torch.Tensor:
    """Attention within each sample, before its output projection.

    Args:
        values: [total_tokens, d], which ask.
        memory_values: [total_memory, d of the memory], which are asked; `values` itself for self attention.
        memory: the samples of the memory.
        context: whose `own` says what is left out.

    Returns:
        [total_tokens, heads * head_dim]
    """
    control = context.own or AttentionControl()
    kept = None
    if control.head_mask is not None:
        offsets = context.batch.offsets, memory.offsets
        kept = project_kept_heads(parts, values, offsets[0], memory_values, offsets[1], control.head_mask)
    query, key, value = _project_all_heads(parts, values, memory_values) if kept is None else kept
    batch, dropout_p = context.batch, parts.dropout if training else 0.0
    if context.padded_bias is not None:
        return _attend_padded(query, key, value, batch, context.padded_bias, parts.scale, dropout_p)
    attended, _, _ = token_gather_attention(
        query,
        key,
        value,
        batch.offsets,
        memory.offsets,
        batch.max_length,
        memory.max_length,
        head_mask=control.head_mask,
        key_bias=control.key_bias,
        scale=parts.scale,
        causal=context.causal,
        dropout_p=dropout_p,
    )
    if control.head_gates is not None:
        gates = control.head_gates.to(attended.dtype)
        attended = attended * gates.repeat_interleave(batch.lengths, 0, output_size=attended.shape[0])[:, :, None]
    return attended.flatten(1)


def _project_all_heads(
    parts: AttentionParts, values: torch.Tensor, memory_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value, [tokens, heads, head_dim]"""
    by_head = (-1, parts.head_dim)
    if parts.qkv is not None:
        return parts.qkv(values).unflatten(-1, (3, *by_head)).unbind(-3)
    assert parts.query is not None and parts.key is not None and parts.value is not None
    return (
        parts.query(values).unflatten(-1, by_head),
        parts.key(memory_values).unflatten(-1, by_head),
        parts.value(memory_values).unflatten(-1, by_head),
    )


def project_output(
    parts: AttentionParts,
    attended: torch.Tensor,
    context: PackedContext,
    training: bool,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """dropout(output(attended)), plus a residual if there is one; of kept heads only."""
    mask = None if context.own is None else context.own.head_mask
    layer = None if mask is None else head_masked(parts.output, mask.shape[1], "reduce")
    if layer is None:
        if residual is not None:
            return project_and_add(parts.output, attended, parts.output_dropout, training, residual)
        return dropout(parts.output(attended), parts.output_dropout, training)
    if residual is not None and training and parts.output_dropout:
        return residual + dropout(layer(attended, context.batch.offsets, mask), parts.output_dropout, training)
    out = layer(attended, context.batch.offsets, mask, residual=residual)
    return out if residual is not None else dropout(out, parts.output_dropout, training)


def _attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: RaggedBatch,
    bias: torch.Tensor,
    scale: float,
    dropout_p: float,
) -> torch.Tensor:
    """Self attention with a bias by places: [total_tokens, heads, head_dim] -> [total_tokens, heads * head_dim]"""
    query, key, value = (batch.replace(part).unpack().transpose(1, 2) for part in (query, key, value))
    attended = scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout_p, scale=scale)
    return batch.gather(attended.transpose(1, 2)).flatten(1)


def run_feed_forward(
    parts: FeedForwardParts, values: torch.Tensor, training: bool, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """The feed-forward block without its norm, plus a residual if there is one."""
    first, second = parts.intermediate, parts.output
    drops = training and (parts.activation_dropout or parts.output_dropout)
    is_plain = parts.gate is None and isinstance(parts.activation, nn.Identity)
    if isinstance(first, MaskedLinear) and isinstance(second, MaskedLinear) and is_plain and not drops:
        return masked_feed_forward(first, second, values, residual)
    hidden = parts.activation(first(values))
    if parts.gate is not None:
        hidden = hidden * parts.gate(values)
    hidden = dropout(hidden, parts.activation_dropout, training)
    if residual is not None:
        return project_and_add(second, hidden, parts.output_dropout, training, residual)
    return dropout(second(hidden), parts.output_dropout, training)


def project_and_add(
    linear: nn.Module, values: torch.Tensor, dropout_p: float, training: bool, residual: torch.Tensor
) -> torch.Tensor:
    """residual + dropout(linear(values)), in one pass where nothing is dropped."""
    if isinstance(linear, (FusedLinear, MaskedLinear)) and not (training and dropout_p):
        return linear(values, residual)
    return residual + dropout(linear(values), dropout_p, training)


def normalize(norm: nn.Module, values: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """norm(values + residual), in one pass unless the norm is a special one or autocast mixes dtypes."""
    mixed = residual is not None and residual.dtype != values.dtype
    if type(norm) is not nn.LayerNorm or norm.bias is None or norm.weight.dtype != values.dtype or mixed:
        return norm(values if residual is None else values + residual)
    return residual_layer_norm(values, residual, norm.weight, norm.bias, norm.eps)[0]
