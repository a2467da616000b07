"""CLIP: its text model, whose tokens see only tokens up to their own, and its vision model.

Both have the same pre-norm layers and the same encoder class; the text model passes is_causal=True to its encoder.
"""

from typing import Any

from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPEncoderLayer, CLIPTextModel, CLIPVisionModel

from vleff.models.encoder import PackedEncoder
from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PreNormLayer
from vleff.models.registry import Adapter, register


class CLIPLikeLayer(PreNormLayer):
    """The layer of CLIP and the models that copy it: same parts, same names."""

    self_attn: Any
    mlp: Any
    layer_norm1: Any
    layer_norm2: Any

    def parts(self) -> LayerParts:
        attention, feed_forward = self.self_attn, self.mlp
        return LayerParts(
            AttentionParts(
                query=attention.q_proj,
                key=attention.k_proj,
                value=attention.v_proj,
                head_dim=attention.head_dim,
                scale=attention.scale,
                dropout=attention.dropout,
                output=attention.out_proj,
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


class CLIPLikeEncoder(PackedEncoder):
    """The encoder of CLIP and the models that copy it, called by keywords."""

    output_class = BaseModelOutput
    layers_name = "layers"

    def forward(self, *args: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        """As of PackedEncoder; the hidden states may be named `inputs_embeds`."""
        states = () if inputs_embeds is None else (inputs_embeds,)
        return super().forward(*states, *args, **kwargs)


class PackedCLIPLayer(CLIPLikeLayer, CLIPEncoderLayer):
    pass


class PackedCLIPEncoder(CLIPLikeEncoder, CLIPEncoder):
    pass


class PackedCLIPTextLayer(PackedCLIPLayer):
    passes_is_causal = True

    @staticmethod
    def unsupported(layer: Any) -> str | None:
        if not getattr(layer.self_attn.config, "is_causal", True):
            return "its config asks for bidirectional attention (config.is_causal)"
        return PackedCLIPLayer.unsupported(layer)


class PackedCLIPTextEncoder(PackedCLIPEncoder):
    passes_is_causal = True


register(
    Adapter(
        "CLIP text",
        CLIPTextModel,
        {CLIPEncoder: PackedCLIPTextEncoder, CLIPEncoderLayer: PackedCLIPTextLayer},
        causal=True,
    )
)
register(Adapter("CLIP vision", CLIPVisionModel, {CLIPEncoder: PackedCLIPEncoder, CLIPEncoderLayer: PackedCLIPLayer}))
