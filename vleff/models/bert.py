"""BERT: every model around a BertModel that is not a decoder."""

from typing import Any

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer, BertModel

from vleff.models.encoder import PackedEncoder
from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PostNormLayer
from vleff.models.registry import Adapter, register


def bert_like_attention(attention: Any) -> AttentionParts:
    """An attention block with BERT's names."""
    own, output = attention.self, attention.output
    return AttentionParts(
        query=own.query,
        key=own.key,
        value=own.value,
        head_dim=own.attention_head_size,
        scale=own.attention_head_size**-0.5,
        dropout=own.dropout.p,
        output=output.dense,
        output_dropout=output.dropout.p,
        norm=output.LayerNorm,
    )


def bert_like_feed_forward(layer: Any) -> FeedForwardParts:
    """The feed-forward block of a layer with BERT's names."""
    return FeedForwardParts(
        intermediate=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        output=layer.output.dense,
        output_dropout=layer.output.dropout.p,
        norm=layer.output.LayerNorm,
    )


class BertLikeLayer(PostNormLayer):
    """The layer of BERT, RoBERTa and the models that copy them: same parts, same names."""

    attention: Any
    intermediate: Any
    output: Any

    def parts(self) -> LayerParts:
        return LayerParts(bert_like_attention(self.attention), bert_like_feed_forward(self))

    def uncalled(self) -> tuple[nn.Module, ...]:
        attention, projection, output = self.attention, self.attention.output, self.output
        return attention, attention.self, projection, projection.LayerNorm, self.intermediate, output, output.LayerNorm

    @staticmethod
    def unsupported(layer: Any) -> str | None:
        return "it is a decoder (config.is_decoder)" if layer.is_decoder else PostNormLayer.unsupported(layer)


class BertLikeEncoder(PackedEncoder):
    output_class = BaseModelOutputWithPastAndCrossAttentions
    trimmable = True


class PackedBertLayer(BertLikeLayer, BertLayer):
    pass


class PackedBertEncoder(BertLikeEncoder, BertEncoder):
    pass


register(Adapter("BERT", BertModel, {BertEncoder: PackedBertEncoder, BertLayer: PackedBertLayer}))
