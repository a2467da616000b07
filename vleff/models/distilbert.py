"""DistilBERT: BERT's layer under other names, without dropout after the attention's output projection."""

from typing import Any

from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.distilbert.configuration_distilbert import DistilBertConfig
from transformers.models.distilbert.modeling_distilbert import DistilBertModel, Transformer, TransformerBlock

from vleff.models.encoder import PackedEncoder
from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PostNormLayer
from vleff.models.registry import Adapter, register


class PackedTransformerBlock(PostNormLayer, TransformerBlock):
    def parts(self) -> LayerParts:
        attention, feed_forward = self.attention, self.ffn
        return LayerParts(
            AttentionParts(
                query=attention.q_lin,
                key=attention.k_lin,
                value=attention.v_lin,
                head_dim=attention.attention_head_size,
                scale=attention.scaling,
                dropout=attention.dropout.p,
                output=attention.out_lin,
                norm=self.sa_layer_norm,
            ),
            FeedForwardParts(
                intermediate=feed_forward.lin1,
                activation=feed_forward.activation,
                output=feed_forward.lin2,
                output_dropout=feed_forward.dropout.p,
                norm=self.output_layer_norm,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        return self.attention, self.sa_layer_norm, self.ffn, self.output_layer_norm

    @staticmethod
    def unsupported(layer: Any) -> str | None:
        return PostNormLayer.unsupported(layer.ffn)


class PackedTransformer(PackedEncoder, Transformer):
    output_class = BaseModelOutput
    trimmable = True
    layer: Any

    @property
    def config(self) -> DistilBertConfig:
        return self.layer[0].attention.config


register(
    Adapter(
        "DistilBERT",
        DistilBertModel,
        {Transformer: PackedTransformer, TransformerBlock: PackedTransformerBlock},
    )
)
