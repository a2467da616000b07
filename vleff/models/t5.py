"""T5: its encoder, whose layers share a bias by relative places; decoders run as transformers wrote them."""

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.t5.modeling_t5 import T5Block, T5Stack
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from vleff.models.encoder import PackedModel, pack_weights
from vleff.models.layer import (
    AttentionParts,
    FeedForwardParts,
    LayerParts,
    PackedContext,
    PreNormLayer,
    hide_padding,
    is_watched,
    runs_packed,
)
from vleff.models.registry import Adapter, register
from vleff.nn.ragged import RaggedBatch


class PackedT5Block(PreNormLayer, T5Block):
    @staticmethod
    def unsupported(layer: Any) -> str | None:
        if layer.is_decoder:
            return "it is a decoder"
        feed_forward = layer.layer[-1].DenseReluDense
        if feed_forward.wo.weight.dtype != layer.layer[0].SelfAttention.q.weight.dtype:
            return "its feed-forward output projection is kept in another dtype (wo)"
        return PreNormLayer.unsupported(layer)

    def parts(self) -> LayerParts:
        layers: Any = self.layer
        attention_layer, feed_forward_layer = layers[0], layers[-1]
        attention, feed_forward = attention_layer.SelfAttention, feed_forward_layer.DenseReluDense
        is_gated = hasattr(feed_forward, "wi_1")
        return LayerParts(
            AttentionParts(
                query=attention.q,
                key=attention.k,
                value=attention.v,
                head_dim=attention.key_value_proj_dim,
                scale=1.0,
                dropout=attention.dropout,
                output=attention.o,
                output_dropout=attention_layer.dropout.p,
                norm=attention_layer.layer_norm,
            ),
            FeedForwardParts(
                intermediate=feed_forward.wi_0 if is_gated else feed_forward.wi,
                gate=feed_forward.wi_1 if is_gated else None,
                activation=feed_forward.act,
                activation_dropout=feed_forward.dropout.p,
                output=feed_forward.wo,
                output_dropout=feed_forward_layer.dropout.p,
                norm=feed_forward_layer.layer_norm,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        layers: Any = self.layer
        attention, feed_forward = layers[0], layers[-1]
        return (
            attention,
            attention.SelfAttention,
            attention.layer_norm,
            feed_forward,
            feed_forward.DenseReluDense,
            feed_forward.layer_norm,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        position_bias: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As of T5Block; packed with a PackedContext for the mask."""
        if isinstance(attention_mask, PackedContext):
            return self.forward_packed(hidden_states, attention_mask)
        covered = position_bias is not None and _covers(hidden_states, attention_mask, args, kwargs)
        if not covered or self.has_inner_hooks():
            return T5Block.forward(self, hidden_states, attention_mask, position_bias, *args, **kwargs)
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        context = PackedContext(batch, padded_bias=hide_padding(position_bias, attention_mask))
        return batch.replace(self.forward_packed(batch.values, context)).unpack(), position_bias, None


class PackedT5Stack(PackedModel, T5Stack):
    original_class = T5Stack

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of T5Stack."""
        if self.is_decoder or any(argument is not None for argument in args[2:]):
            return T5Stack.forward(self, *args, **kwargs)
        return self._encode(*args, **kwargs)

    @merge_with_config_defaults
    @capture_outputs
    def _encode(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        mask: Any = create_bidirectional_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask
        )
        hidden_states = self.dropout(inputs_embeds)
        blocks: Any = self.block
        length, device = hidden_states.shape[1], hidden_states.device
        bias = blocks[0].layer[0].SelfAttention.compute_bias(length, length, device=device)
        covered = _covers(hidden_states, mask, (), kwargs)
        watched = kwargs.get("output_hidden_states", self.config.output_hidden_states) or any(
            is_watched(block) or block.has_inner_hooks() for block in blocks
        )
        # a checkpoint that is reentrant has to see the bias as an argument
        checkpoints = self.training and bias.requires_grad and any(block.gradient_checkpointing for block in blocks)
        if covered and not watched and not checkpoints:
            pack_weights(self)
            batch = RaggedBatch.pack(hidden_states, mask)
            values, context = batch.values, PackedContext(batch, padded_bias=hide_padding(bias, mask))
            for block in blocks:
                values = block(values, context)
            hidden_states = batch.replace(values).unpack()
        else:
            if covered and mask is not None:
                hidden_states = hidden_states.masked_fill(~mask[:, :, None], 0)
            for block in blocks:
                hidden_states = block(hidden_states, mask, bias, **kwargs)[0]
        hidden_states = self.dropout(self.final_layer_norm(hidden_states))
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


def _covers(hidden_states: torch.Tensor, mask: Any, positional: tuple[Any, ...], arguments: dict[str, Any]) -> bool:
    """float16 runs as transformers wrote it, with its clamps."""
    return hidden_states.dtype != torch.float16 and runs_packed(hidden_states, mask, positional, arguments)


register(Adapter("T5", T5Stack, {T5Stack: PackedT5Stack, T5Block: PackedT5Block}))
