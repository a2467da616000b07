"""MPNet: BERT's layer with a bias by relative places, which all layers share."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetLayer, MPNetModel

from vleff.models.bert import bert_like_feed_forward
from vleff.models.encoder import PackedEncoder
from vleff.models.layer import AttentionParts, LayerParts, PackedContext, PostNormLayer, hide_padding, runs_packed
from vleff.models.registry import Adapter, register
from vleff.nn.ragged import RaggedBatch


class PackedMPNetLayer(PostNormLayer, MPNetLayer):
    returns_tuple = True
    own_attention = True

    def parts(self) -> LayerParts:
        attention = self.attention.attn
        return LayerParts(
            AttentionParts(
                query=attention.q,
                key=attention.k,
                value=attention.v,
                head_dim=attention.attention_head_size,
                scale=attention.attention_head_size**-0.5,
                dropout=attention.dropout.p,
                output=attention.o,
                output_dropout=self.attention.dropout.p,
                norm=self.attention.LayerNorm,
            ),
            bert_like_feed_forward(self),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        attention, output = self.attention, self.output
        return attention, attention.attn, attention.LayerNorm, self.intermediate, output, output.LayerNorm

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, position_bias: Any = None, **kwargs: Any
    ) -> Any:
        """As of PackedLayer; position_bias [batch, heads, length, length] or None."""
        if isinstance(attention_mask, PackedContext) or position_bias is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        if not runs_packed(hidden_states, attention_mask, (), kwargs) or self.has_inner_hooks():
            return super().forward(hidden_states, attention_mask, position_bias, **kwargs)
        batch = RaggedBatch.pack(hidden_states, attention_mask)
        context = PackedContext(batch, padded_bias=hide_padding(position_bias, attention_mask))
        return (batch.replace(self.forward_packed(batch.values, context)).unpack(),)


class PackedMPNetEncoder(PackedEncoder, MPNetEncoder):
    output_class = BaseModelOutput
    own_attention = True
    biased_by_places = True

    def context(self, hidden_states: torch.Tensor, attention_mask: Any, batch: RaggedBatch) -> PackedContext:
        bias = self.compute_position_bias(hidden_states)
        return PackedContext(batch, padded_bias=hide_padding(bias, attention_mask))


register(Adapter("MPNet", MPNetModel, {MPNetEncoder: PackedMPNetEncoder, MPNetLayer: PackedMPNetLayer}))
