"""BERT: every model around a BertModel that is not a decoder."""

from typing import Any

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertModel

from vleff.models.encoder import LayerParts, PackedEncoder, PostNormLayer
from vleff.models.registry import Adapter, register


class BertLikeLayer(PostNormLayer):
    """The layer of BERT, RoBERTa and the models that copy them: same parts, same names."""

    attention: Any
    intermediate: Any
    output: Any

    def parts(self) -> LayerParts:
        attention, projection = self.attention.self, self.attention.output
        return LayerParts(
            query=attention.query,
            key=attention.key,
            value=attention.value,
            head_dim=attention.attention_head_size,
            scale=attention.scaling,
            attention_dropout=attention.dropout.p,
            attention_output=projection.dense,
            attention_output_dropout=projection.dropout.p,
            attention_norm=projection.LayerNorm,
            intermediate=self.intermediate.dense,
            activation=self.intermediate.intermediate_act_fn,
            output=self.output.dense,
            output_dropout=self.output.dropout.p,
            output_norm=self.output.LayerNorm,
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        attention, projection, output = self.attention, self.attention.output, self.output
        return attention, attention.self, projection, projection.LayerNorm, self.intermediate, output, output.LayerNorm

    @staticmethod
    def unsupported(layer: Any) -> str | None:
        return "it is a decoder (config.is_decoder)" if layer.is_decoder else PostNormLayer.unsupported(layer)


class BertLikeEncoder(PackedEncoder):
    output_class = BaseModelOutputWithPastAndCrossAttentions


class PackedBertLayer(BertLikeLayer, BertLayer):
    pass


class PackedBertEncoder(BertLikeEncoder, BertEncoder):
    pass


register(Adapter("BERT", BertModel, {BertEncoder: PackedBertEncoder, BertLayer: PackedBertLayer}))
