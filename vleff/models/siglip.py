"""SigLIP: its text model, its vision model and the attention that pools an image."""

from typing import Any

import torch
from torch import nn
from transformers.models.siglip.modeling_siglip import (
    SiglipEncoder,
    SiglipEncoderLayer,
    SiglipMultiheadAttentionPoolingHead,
    SiglipTextModel,
    SiglipVisionModel,
)
from transformers.utils.import_utils import is_tracing

from vleff.models.clip import CLIPLikeEncoder, CLIPLikeLayer
from vleff.models.layer import (
    AttentionParts,
    FeedForwardParts,
    LayerParts,
    PackedLayer,
    additive_mask,
    is_padding_mask,
    normalize,
    run_feed_forward,
    runs_packed,
)
from vleff.models.registry import Adapter, register
from vleff.nn.ragged import RaggedBatch
from vleff.ops.fused_linear import fused_linear
from vleff.ops.token_gather_attention import token_gather_attention


class SiglipLikeTextEncoder(CLIPLikeEncoder):
    """The text model reads the last position, padding or not: what that sees of the text is its result."""

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        """As of CLIPLikeEncoder; runs packed where no sample's last position is padding, or without a mask."""
        if attention_mask is not None and is_padding_mask(attention_mask) and not _sees_last(attention_mask):
            states = args[0] if args else kwargs["inputs_embeds"]
            attention_mask = additive_mask(attention_mask, states.dtype)
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class AttentionPooling(PackedLayer):
    """The pooling head: cross attention from one learned query to an image's tokens, then a feed-forward block."""

    optional = True
    probe: Any
    attention: Any
    layernorm: Any
    mlp: Any

    def parts(self) -> LayerParts:
        attention, feed_forward = self.attention, self.mlp
        return LayerParts(
            AttentionParts(
                head_dim=attention.head_dim,
                scale=attention.head_dim**-0.5,
                output=attention.out_proj,
                norm=self.layernorm,
            ),
            FeedForwardParts(
                intermediate=feed_forward.fc1,
                activation=feed_forward.activation_fn,
                output=feed_forward.fc2,
                norm=self.layernorm,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        return self.attention, self.attention.out_proj, self.layernorm, self.mlp

    def forward(self, hidden_state: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """hidden_state [batch, length, d], attention_mask [batch, length], zero at padding, or None -> [batch, d]"""
        mask = None if attention_mask is None else attention_mask.bool()
        if self._covers(hidden_state, mask):
            return self._pooled(RaggedBatch.pack(hidden_state, mask))
        original = super(PackedLayer, self).forward
        return original(hidden_state) if mask is None else original(hidden_state, mask[:, None, None, :])

    def _covers(self, hidden_state: torch.Tensor, mask: torch.Tensor | None) -> bool:
        return (
            type(self.attention) is nn.MultiheadAttention  # an adapter may be around it
            and not torch.is_autocast_enabled(hidden_state.device.type)
            and runs_packed(hidden_state, mask, (), {})
            and not self.has_inner_hooks()
        )

    def _pooled(self, batch: RaggedBatch) -> torch.Tensor:
        attention = self.attention
        width, by_head = attention.embed_dim, (attention.num_heads, attention.head_dim)
        weight, bias = attention.in_proj_weight, attention.in_proj_bias  # of query, key and value
        query = fused_linear(self.probe[0], weight[:width], bias[:width])  # [1, d]: the same for all images
        projected = fused_linear(batch.values, weight[width:], bias[width:])
        key, value = projected.unflatten(-1, (2, *by_head)).unbind(-3)
        attended, _, _ = token_gather_attention(
            query.unflatten(-1, by_head).expand(batch.batch_size, -1, -1),
            key,
            value,
            torch.arange(batch.batch_size + 1, dtype=torch.int32, device=query.device),
            batch.offsets,
            1,
            batch.max_length,
        )
        pooled = attention.out_proj(attended.flatten(1))
        return run_feed_forward(self.parts().feed_forward, normalize(self.layernorm, pooled), self.training, pooled)


def _sees_last(mask: torch.Tensor) -> bool:
    """Whether no sample's last position is padding, as far as can be known."""
    return not is_tracing(mask) and bool(mask[:, -1].all())


class PackedSiglipLayer(CLIPLikeLayer, SiglipEncoderLayer):
    pass


class PackedSiglipTextEncoder(SiglipLikeTextEncoder, SiglipEncoder):
    pass


class PackedSiglipVisionEncoder(CLIPLikeEncoder, SiglipEncoder):
    pass


class PackedSiglipPooling(AttentionPooling, SiglipMultiheadAttentionPoolingHead):
    pass


register(
    Adapter(
        "SigLIP text",
        SiglipTextModel,
        {SiglipEncoder: PackedSiglipTextEncoder, SiglipEncoderLayer: PackedSiglipLayer},
    )
)
register(
    Adapter(
        "SigLIP vision",
        SiglipVisionModel,
        {
            SiglipEncoder: PackedSiglipVisionEncoder,
            SiglipEncoderLayer: PackedSiglipLayer,
            SiglipMultiheadAttentionPoolingHead: PackedSiglipPooling,
        },
    )
)
