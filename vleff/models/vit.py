"""ViT: pre-norm layers, called one by one by ViTModel itself.

Each layer packs for itself: images of one batch have the same number of tokens, so that packing is a view.
"""

from torch import nn
from transformers.models.vit.modeling_vit import ViTLayer, ViTModel

from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PreNormLayer
from vleff.models.registry import Adapter, register


class PackedViTLayer(PreNormLayer, ViTLayer):
    def parts(self) -> LayerParts:
        attention, feed_forward = self.attention, self.mlp
        return LayerParts(
            AttentionParts(
                query=attention.q_proj,
                key=attention.k_proj,
                value=attention.v_proj,
                head_dim=attention.head_dim,
                scale=attention.scaling,
                dropout=attention.attention_dropout,
                output=attention.o_proj,
                output_dropout=self.dropout.p,
                norm=self.layernorm_before,
            ),
            FeedForwardParts(
                intermediate=feed_forward.fc1,
                activation=feed_forward.activation_fn,
                output=feed_forward.fc2,
                output_dropout=self.dropout.p,
                norm=self.layernorm_after,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        return self.layernorm_before, self.attention, self.layernorm_after, self.mlp


register(Adapter("ViT", ViTModel, {ViTLayer: PackedViTLayer}))
