"""SigLIP 2: SigLIP's layers, over images with as many patches as their shape asks for, padded by a mask."""

from transformers.models.siglip2.modeling_siglip2 import (
    Siglip2Encoder,
    Siglip2EncoderLayer,
    Siglip2MultiheadAttentionPoolingHead,
    Siglip2TextModel,
    Siglip2VisionModel,
)

from vleff.models.clip import CLIPLikeEncoder, CLIPLikeLayer
from vleff.models.registry import Adapter, register
from vleff.models.siglip import AttentionPooling, SiglipLikeTextEncoder


class PackedSiglip2Layer(CLIPLikeLayer, Siglip2EncoderLayer):
    pass


class PackedSiglip2TextEncoder(SiglipLikeTextEncoder, Siglip2Encoder):
    pass


class PackedSiglip2VisionEncoder(CLIPLikeEncoder, Siglip2Encoder):
    pass


class PackedSiglip2Pooling(AttentionPooling, Siglip2MultiheadAttentionPoolingHead):
    pass


register(
    Adapter(
        "SigLIP 2 text",
        Siglip2TextModel,
        {Siglip2Encoder: PackedSiglip2TextEncoder, Siglip2EncoderLayer: PackedSiglip2Layer},
    )
)
register(
    Adapter(
        "SigLIP 2 vision",
        Siglip2VisionModel,
        {
            Siglip2Encoder: PackedSiglip2VisionEncoder,
            Siglip2EncoderLayer: PackedSiglip2Layer,
            Siglip2MultiheadAttentionPoolingHead: PackedSiglip2Pooling,
        },
    )
)
