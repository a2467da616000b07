"""BLIP: its vision model and its text model, which may attend to an image as well.

The cross attention of transformers ignores `encoder_attention_mask`; an accelerated model obeys it.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, BaseModelOutputWithPooling
from transformers.models.blip.modeling_blip import BlipEncoder, BlipEncoderLayer, BlipVisionModel
from transformers.models.blip.modeling_blip_text import (
    BlipTextEncoder,
    BlipTextLayer,
    BlipTextLMHeadModel,
    BlipTextModel,
    BlipTextSelfAttention,
)
from transformers.utils import can_return_tuple

from vleff.models.bert import bert_like_attention, bert_like_feed_forward
from vleff.models.clip import CLIPLikeEncoder
from vleff.models.encoder import PackedEncoder, PackedModel, co_attending_stream, unpack_stream
from vleff.models.layer import (
    AttentionParts,
    FeedForwardParts,
    LayerParts,
    PackedContext,
    PostNormLayer,
    PreNormLayer,
    additive_mask,
    is_padding_mask,
    normalize,
    runs_packed,
    trimmed_context,
)
from vleff.models.registry import Adapter, register
from vleff.models.trimming import Stream, StreamSpec, active_trimming, memory_for_decoder, memory_stream
from vleff.nn.ragged import RaggedBatch


class _LayerWithMask(BlipEncoderLayer):
    def forward(self, hidden_states: torch.Tensor, attention_mask: None = None, **kwargs: Any) -> Any:
        return super().forward(hidden_states, **kwargs)


class _EncoderWithMask(BlipEncoder):
    def forward(self, hidden_states: torch.Tensor, attention_mask: None = None, **kwargs: Any) -> Any:
        return super().forward(hidden_states, **kwargs)


class PackedBlipVisionLayer(PreNormLayer, _LayerWithMask):
    def parts(self) -> LayerParts:
        attention, feed_forward = self.self_attn, self.mlp
        return LayerParts(
            AttentionParts(
                qkv=attention.qkv,
                head_dim=attention.head_dim,
                scale=attention.scale,
                dropout=attention.dropout.p,
                output=attention.projection,
                norm=self.layer_norm1,
            ),
            FeedForwardParts(
                intermediate=feed_forward.fc1,
                activation=feed_forward.activation_fn,
                output=feed_forward.fc2,
                norm=self.layer_norm2,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        return self.layer_norm1, self.self_attn, self.layer_norm2, self.mlp


class PackedBlipVisionEncoder(CLIPLikeEncoder, _EncoderWithMask):
    trimmable = True


class TrimmedBlipVisionModel(PackedModel, BlipVisionModel):
    """Leaves zeros where tokens were dropped, which its LayerNorm would make its bias of."""

    original_class = BlipVisionModel

    @can_return_tuple
    def forward(self, pixel_values: Any = None, interpolate_pos_encoding: bool = False, **kwargs: Any) -> Any:
        """As of BlipVisionModel; dropped tokens are zeros in `last_hidden_state`."""
        if active_trimming(self.encoder) is None or pixel_values is None:  # without pixels it is refused there
            return BlipVisionModel.forward(self, pixel_values, interpolate_pos_encoding, **kwargs)
        padded = unpack_stream(self.run_trimmed(pixel_values, interpolate_pos_encoding, kwargs))
        pooled = self.post_layernorm(padded[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=padded, pooler_output=pooled)

    def run_trimmed(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, arguments: dict[str, Any]
    ) -> Stream:
        """The tokens that are left after the last layer."""
        encoder: Any = self.encoder
        states = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        encoder.refuse_watched_call(runs_packed(states, None, (), {}), arguments)
        stream = encoder.run_trimmed(Stream.pack(states))
        return stream.replace(normalize(self.post_layernorm, stream.values))


class PackedBlipTextSelfAttention(BlipTextSelfAttention):
    """Lets a layer's mask of the memory through to its cross attention."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if encoder_hidden_states is not None and encoder_attention_mask is None:
            encoder_attention_mask = attention_mask
        return super().forward(hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, **kwargs)


class PackedBlipTextLayer(PostNormLayer, BlipTextLayer):
    def parts(self) -> LayerParts:
        return LayerParts(
            bert_like_attention(self.attention),
            bert_like_feed_forward(self),
            bert_like_attention(self.crossattention) if hasattr(self, "crossattention") else None,
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        found: list[nn.Module] = [self.intermediate, self.output, self.output.LayerNorm]
        for attention in (self.attention, getattr(self, "crossattention", None)):
            if attention is not None:
                found += [attention, attention.self, attention.output, attention.output.LayerNorm]
        return tuple(found)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of PackedLayer, the context in the place of `encoder_hidden_states`."""
        if isinstance(encoder_hidden_states, PackedContext):
            return self.forward_packed(hidden_states, encoder_hidden_states)
        if not _covers(hidden_states, attention_mask, encoder_attention_mask, kwargs) or self.has_inner_hooks():
            return BlipTextLayer.forward(
                self,
                hidden_states,
                encoder_hidden_states,
                additive_mask(attention_mask, hidden_states.dtype),
                additive_mask(encoder_attention_mask, hidden_states.dtype),
                **kwargs,
            )
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        context = PackedContext(batch, memory=_memory(encoder_hidden_states, encoder_attention_mask))
        return batch.replace(self.forward_packed(batch.values, context)).unpack()


class PackedBlipTextEncoder(PackedEncoder, BlipTextEncoder):
    output_class = BaseModelOutputWithPastAndCrossAttentions
    trimmable = True

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of PackedEncoder; runs packed with a memory, too, whose mask is bool [batch, length] or None."""
        covered = _covers(hidden_states, attention_mask, encoder_attention_mask, kwargs)
        trimming = active_trimming(self)
        if trimming is not None and trimming.has_streams:
            self.refuse_watched_call(covered, kwargs)
            memory = encoder_hidden_states
            seen = None if memory is None else memory_stream(memory, encoder_attention_mask)
            stream = self.run_with_memory(Stream.pack(hidden_states, attention_mask), seen)
            return self.output_class(last_hidden_state=unpack_stream(stream))
        if trimming is not None and encoder_hidden_states is not None:  # a decoder
            encoder_hidden_states, encoder_attention_mask = memory_for_decoder(
                encoder_hidden_states, encoder_attention_mask, trimming
            )
            covered = _covers(hidden_states, attention_mask, encoder_attention_mask, kwargs)
        if not covered or self._layers_are_watched(kwargs):
            if covered and attention_mask is not None:
                hidden_states = hidden_states.masked_fill(~attention_mask[:, :, None], 0)
            return BlipTextEncoder.forward(
                self, hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, **kwargs
            )
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        context = PackedContext(batch, memory=_memory(encoder_hidden_states, encoder_attention_mask))
        return self.output_class(last_hidden_state=self.forward_packed(batch, context).unpack())

    def run_with_memory(self, stream: Stream, memory: Stream | None) -> Stream:
        """Runs all layers, trimming the text; the memory stays as it is."""
        self.pack_weights()
        trimming = active_trimming(self)
        assert trimming is not None
        run = trimming.begin(stream, memory)
        streams = [stream] if memory is None else [stream, memory]
        for number, layer in enumerate(self.packed_layers()):
            (stream, controls), *_ = run.before_layer(number, *streams)
            streams[0] = stream.replace(layer(stream.values, trimmed_context(stream, controls, memory)))
        run.finish(*streams)
        return streams[0]

    def streams(self) -> tuple[StreamSpec, ...]:
        """The text, and the memory that it attends to."""
        own = super().streams()
        if not own or not hasattr(self.layer[0], "crossattention"):
            return own
        first: Any = self.layer[0]
        width = first.crossattention.self.key.in_features
        text = co_attending_stream("tokens", "memory", width, self.packed_layers())
        return text, StreamSpec("memory", width, ())


def _covers(hidden_states: torch.Tensor, mask: Any, memory_mask: Any, arguments: dict[str, Any]) -> bool:
    return runs_packed(hidden_states, mask, (), arguments) and is_padding_mask(memory_mask)


def _memory(states: torch.Tensor | None, mask: torch.Tensor | None) -> RaggedBatch | None:
    return None if states is None else RaggedBatch.pack(states, mask)


register(
    Adapter(
        "BLIP vision",
        BlipVisionModel,
        {BlipEncoder: PackedBlipVisionEncoder, BlipEncoderLayer: PackedBlipVisionLayer},
        trimmed_classes={BlipVisionModel: TrimmedBlipVisionModel},
    )
)
register(
    Adapter(
        "BLIP text",
        BlipTextModel,
        {
            BlipTextEncoder: PackedBlipTextEncoder,
            BlipTextLayer: PackedBlipTextLayer,
            BlipTextSelfAttention: PackedBlipTextSelfAttention,
        },
        decoders=(BlipTextLMHeadModel,),
    )
)
