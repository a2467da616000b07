"""BART: its encoder; decoders run as transformers wrote them, with fused linears."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bart.modeling_bart import BartEncoder, BartEncoderLayer
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from vleff.models.encoder import PackedModel, pack_weights
from vleff.models.layer import (
    AttentionParts,
    FeedForwardParts,
    LayerParts,
    PackedContext,
    PostNormLayer,
    is_watched,
    runs_packed,
)
from vleff.models.registry import Adapter, register
from vleff.nn.ragged import RaggedBatch


class PackedBartEncoderLayer(PostNormLayer, BartEncoderLayer):
    def parts(self) -> LayerParts:
        attention: Any = self.self_attn
        dropout_p: Any = self.dropout
        return LayerParts(
            AttentionParts(
                query=attention.q_proj,
                key=attention.k_proj,
                value=attention.v_proj,
                head_dim=attention.head_dim,
                scale=attention.scaling,
                dropout=attention.dropout,
                output=attention.out_proj,
                output_dropout=dropout_p,
                norm=self.self_attn_layer_norm,
            ),
            FeedForwardParts(
                intermediate=self.fc1,
                activation=self.activation_fn,
                activation_dropout=float(self.activation_dropout or 0),
                output=self.fc2,
                output_dropout=dropout_p,
                norm=self.final_layer_norm,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        return self.self_attn, self.self_attn_layer_norm, self.final_layer_norm

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As of PackedLayer; float16 runs as transformers wrote it, with its clamps."""
        if hidden_states.dtype == torch.float16:
            return BartEncoderLayer.forward(self, hidden_states, attention_mask, *args, **kwargs)
        return super().forward(hidden_states, attention_mask, *args, **kwargs)


class PackedBartEncoder(PackedModel, BartEncoder):
    original_class = BartEncoder

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of BartEncoder."""
        kwargs.pop("use_cache", None)  # from the config; an encoder has no cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        hidden_states = self.layernorm_embedding(inputs_embeds + self.embed_positions(inputs_embeds[:, :, -1]))
        hidden_states = dropout(hidden_states, float(self.dropout or 0), self.training)
        mask: Any = create_bidirectional_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask
        )
        layers = [layer for layer in self.layers if not self._drops_a_layer()]
        packs = runs_packed(hidden_states, mask, (), kwargs) and hidden_states.dtype != torch.float16
        if packs and not self._layers_are_watched(kwargs):
            pack_weights(self)
            batch = RaggedBatch.pack(hidden_states, mask)
            values, context = batch.values, PackedContext(batch)
            for layer in layers:
                values = layer(values, context)
            return BaseModelOutput(last_hidden_state=batch.replace(values).unpack())
        if packs and mask is not None:
            hidden_states = hidden_states.masked_fill(~mask[:, :, None], 0)
        for layer in layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _drops_a_layer(self) -> bool:
        """LayerDrop (Fan et al. 2019) in training, with the draws of BartEncoder."""
        share = float(self.layerdrop or 0)
        return self.training and share > 0.0 and bool(torch.rand([]) < share)

    def _layers_are_watched(self, arguments: dict[str, Any]) -> bool:
        watched = arguments.get("output_hidden_states", self.config.output_hidden_states)
        layers: Any = self.layers
        return bool(watched) or any(is_watched(layer) or layer.has_inner_hooks() for layer in layers)


register(Adapter("BART", BartEncoder, {BartEncoder: PackedBartEncoder, BartEncoderLayer: PackedBartEncoderLayer}))
