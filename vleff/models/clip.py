"""CLIP: its text model, whose tokens see only tokens up to their own, and its vision model.

Both have the same pre-norm layers and the same encoder class; the text model passes is_causal=True to its encoder.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPEncoderLayer, CLIPTextModel, CLIPVisionModel
from transformers.utils import can_return_tuple

from vleff.models.encoder import PackedEncoder, PackedModel, unpack_stream
from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PreNormLayer, normalize, runs_packed
from vleff.models.registry import Adapter, register
from vleff.models.trimming import Stream, active_trimming


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
    trimmable = True


class PackedCLIPTextLayer(PackedCLIPLayer):
    passes_is_causal = True

    @staticmethod
    def unsupported(layer: Any) -> str | None:
        if not getattr(layer.self_attn.config, "is_causal", True):
            return "its config asks for bidirectional attention (config.is_causal)"
        return PackedCLIPLayer.unsupported(layer)


class PackedCLIPTextEncoder(PackedCLIPEncoder):
    passes_is_causal = True


class TrimmedCLIPTextModel(PackedModel, CLIPTextModel):
    """Keeps the end-of-text token, whose state is the pooled output and which the encoder cannot find."""

    original_class = CLIPTextModel

    @can_return_tuple
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        """As of CLIPTextModel; dropped tokens are zeros in `last_hidden_state`."""
        if active_trimming(self.encoder) is None or input_ids is None:  # without ids it is refused there
            return CLIPTextModel.forward(self, input_ids, attention_mask, position_ids, **kwargs)
        encoder: Any = self.encoder
        input_ids = input_ids.view(-1, input_ids.shape[-1])
        states = self.embeddings(input_ids=input_ids, position_ids=position_ids)
        mask = None if attention_mask is None else attention_mask != 0
        encoder.refuse_watched_call(runs_packed(states, mask, (), {}), kwargs)
        # configs of old say 2, and mean the token with the highest number
        ends = (input_ids if self.eos_token_id == 2 else (input_ids == self.eos_token_id).int()).argmax(-1)
        pinned = torch.arange(input_ids.shape[1], device=ends.device) == ends[:, None]
        stream = encoder.run_trimmed(Stream.pack(states, mask, pinned=pinned))
        padded = unpack_stream(stream.replace(normalize(self.final_layer_norm, stream.values)))
        pooled = padded[torch.arange(padded.shape[0], device=ends.device), ends]
        return BaseModelOutputWithPooling(last_hidden_state=padded, pooler_output=pooled)


register(
    Adapter(
        "CLIP text",
        CLIPTextModel,
        {CLIPEncoder: PackedCLIPTextEncoder, CLIPEncoderLayer: PackedCLIPTextLayer},
        causal=True,
        trimmed_classes={CLIPTextModel: TrimmedCLIPTextModel},
    )
)
register(Adapter("CLIP vision", CLIPVisionModel, {CLIPEncoder: PackedCLIPEncoder, CLIPEncoderLayer: PackedCLIPLayer}))
