"""The packed Transformer encoder that the model families share.

An accelerated encoder or layer is the transformers module itself, its class exchanged for a subclass
defined in the family's file: parameters, names, hooks and the original computation (`super().forward`) stay
where they were. The hidden states of all samples lie one after the other in one [total_tokens, d] tensor
from the embeddings to the end of the encoder: no multiply-add is spent on padding.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout
from transformers.utils import ModelOutput

from vleff.nn.fused_linear import FusedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.ops.residual_layer_norm import residual_layer_norm
from vleff.ops.token_gather_attention import token_gather_attention

_PACKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LayerParts(NamedTuple):
    """The pieces of one encoder layer of width d, under names of our own. Dropouts are probabilities."""

    query: nn.Module  # [.., d] -> [.., heads * head_dim], as key and value
    key: nn.Module
    value: nn.Module
    head_dim: int
    scale: float
    attention_dropout: float
    attention_output: nn.Module  # [.., heads * head_dim] -> [.., d]
    attention_output_dropout: float
    attention_norm: nn.LayerNorm
    intermediate: nn.Module  # [.., d] -> [.., intermediate size]
    activation: Any  # a module or a function; an identity where it is fused into `intermediate`
    output: nn.Module  # [.., intermediate size] -> [.., d]
    output_dropout: float
    output_norm: nn.LayerNorm


class PackedLayer(nn.Module):
    """An encoder layer that runs packed; a call that cannot runs as transformers wrote it."""

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

    def forward_packed(self, values: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """values [total_tokens, d] -> [total_tokens, d]; of `batch` only the samples' offsets count."""
        raise NotImplementedError

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [total_tokens, d] with a RaggedBatch for the mask, or as transformers passes them."""
        if isinstance(attention_mask, RaggedBatch):
            return self.forward_packed(hidden_states, attention_mask)
        if not runs_packed(hidden_states, attention_mask, args, kwargs) or self.has_inner_hooks():
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        return batch.replace(self.forward_packed(batch.values, batch)).unpack()

    def has_inner_hooks(self) -> bool:
        """Whether a module that is not called has hooks, which would not run."""
        return any(map(has_hooks, self.uncalled()))


class PostNormLayer(PackedLayer):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x)), as in BERT."""

    def forward_packed(self, values: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        parts, training = self.parts(), self.training
        attended = parts.attention_output(_attend(parts, values, batch, training))
        attended = dropout(attended, parts.attention_output_dropout, training)
        values = _normalize(parts.attention_norm, attended, values)
        output = parts.output(parts.activation(parts.intermediate(values)))
        return _normalize(parts.output_norm, dropout(output, parts.output_dropout, training), values)


class PreNormLayer(PackedLayer):
    """x = x + attention(norm(x)); x = x + feed_forward(norm(x)), as in ViT."""

    def forward_packed(self, values: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        parts, training = self.parts(), self.training
        attended = _attend(parts, _normalize(parts.attention_norm, values), batch, training)
        values = _project_and_add(parts.attention_output, attended, parts.attention_output_dropout, training, values)
        intermediate = parts.activation(parts.intermediate(_normalize(parts.output_norm, values)))
        return _project_and_add(parts.output, intermediate, parts.output_dropout, training, values)


class PackedEncoder(nn.Module):
    """A loop over `self.layer` that packs once before it and unpacks once after it.

    Where someone looks at the layers' outputs (hidden states asked for, hooks on layers), transformers' own
    loop calls the layers and each packs and unpacks for itself.
    """

    output_class: ClassVar[type[ModelOutput]]
    config: Any
    layer: Any  # a ModuleList of PackedLayers

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [batch, length, d]; runs packed with a bool mask [batch, length] or none."""
        if not runs_packed(hidden_states, attention_mask, args, kwargs):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        if self._layers_are_watched(kwargs):
            if attention_mask is not None:  # the first hidden state is the embeddings' output
                hidden_states = hidden_states.masked_fill(~attention_mask[:, :, None], 0)
            return super().forward(hidden_states, attention_mask, **kwargs)
        self._pack_weights()
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        values = batch.values
        for layer in self.layer:
            values = layer(values, batch)
        return self.output_class(last_hidden_state=batch.replace(values).unpack())

    def _pack_weights(self) -> None:
        """Packs all weights at once: if each moved between the activations, it would leave a hole in memory."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(self.layer) == 0:
            return
        first = self.layer[0].parts().query
        if isinstance(first, FusedLinear) and not first.is_packed:
            for module in self.modules():
                if isinstance(module, FusedLinear):
                    module.pack_()

    def _layers_are_watched(self, arguments: dict[str, Any]) -> bool:
        watched = arguments.get("output_hidden_states", self.config.output_hidden_states)
        return bool(watched) or any(has_hooks(layer) or layer.has_inner_hooks() for layer in self.layer)


def runs_packed(
    hidden_states: torch.Tensor, attention_mask: Any, positional: tuple[Any, ...], arguments: dict[str, Any]
) -> bool:
    """Whether an encoder or layer call with these arguments is one that the packed computation covers."""
    return (
        all(argument is None for argument in positional)
        and (attention_mask is None or (attention_mask.dim() == 2 and attention_mask.dtype == torch.bool))
        and not any(arguments.get(name) for name in ("output_attentions", "is_causal", "use_cache"))
        and all(arguments.get(name) is None for name in ("encoder_hidden_states", "past_key_values"))
        and hidden_states.device.type == "cpu"
        and hidden_states.dtype in _PACKED_DTYPES
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks besides those by which transformers itself captures hidden states."""
    if not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks):
        return False
    ours = "transformers.utils.output_capturing"
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(getattr(hook, "__module__", None) != ours for group in hooks for hook in group.values())


def _attend(parts: LayerParts, values: torch.Tensor, batch: RaggedBatch, training: bool) -> torch.Tensor:
    """Self attention within each sample: values [total_tokens, d] -> [total_tokens, heads * head_dim]."""
    heads = (-1, parts.head_dim)
    return token_gather_attention(
        parts.query(values).unflatten(-1, heads),
        parts.key(values).unflatten(-1, heads),
        parts.value(values).unflatten(-1, heads),
        batch.offsets,
        batch.offsets,
        batch.max_length,
        batch.max_length,
        scale=parts.scale,
        dropout_p=parts.attention_dropout if training else 0.0,
    )[0].flatten(1)


def _project_and_add(
    linear: nn.Module, values: torch.Tensor, dropout_p: float, training: bool, residual: torch.Tensor
) -> torch.Tensor:
    """residual + dropout(linear(values)), in one pass where nothing is dropped."""
    if isinstance(linear, FusedLinear) and not (training and dropout_p):
        return linear(values, residual)
    return residual + dropout(linear(values), dropout_p, training)


def _normalize(norm: nn.Module, values: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """norm(values + residual), in one pass unless the norm is a special one or autocast mixes dtypes."""
    mixed = residual is not None and residual.dtype != values.dtype
    if type(norm) is not nn.LayerNorm or norm.bias is None or norm.weight.dtype != values.dtype or mixed:
        return norm(values if residual is None else values + residual)
    return residual_layer_norm(values, residual, norm.weight, norm.bias, norm.eps)[0]
