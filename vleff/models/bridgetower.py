"""BridgeTower: a text model, a vision model, and layers in which both attend to each other."""

from typing import Any

import torch
from torch import nn
from transformers.models.bridgetower.modeling_bridgetower import (
    BridgeTowerBertCrossLayer,
    BridgeTowerModel,
    BridgeTowerModelOutput,
    BridgeTowerResidualAttention,
    BridgeTowerTextEncoder,
    BridgeTowerTextLayer,
    BridgeTowerTextModel,
    BridgeTowerVisionModel,
)
from transformers.utils import can_return_tuple

from vleff.models.bert import BertLikeEncoder, BertLikeLayer, bert_like_attention, bert_like_feed_forward
from vleff.models.encoder import PackedModel, pack_weights
from vleff.models.layer import (
    AttentionParts,
    FeedForwardParts,
    LayerParts,
    PackedContext,
    PackedLayer,
    PostNormLayer,
    PreNormLayer,
    normalize,
    runs_packed,
)
from vleff.models.registry import Adapter, register
from vleff.nn.ragged import RaggedBatch
from vleff.ops.fused_linear import fused_linear


class PackedBridgeTowerTextLayer(BertLikeLayer, BridgeTowerTextLayer):
    pass


class PackedBridgeTowerTextEncoder(BertLikeEncoder, BridgeTowerTextEncoder):
    pass


class PackedBridgeTowerVisionLayer(PreNormLayer, BridgeTowerResidualAttention):
    """Called by transformers with [length, batch, d]."""

    def parts(self) -> LayerParts:
        attention, feed_forward = self.attn, self.mlp

        def qkv(values: torch.Tensor) -> torch.Tensor:
            return fused_linear(values, attention.in_proj_weight, attention.in_proj_bias)

        return LayerParts(
            AttentionParts(
                qkv=qkv,
                head_dim=attention.head_dim,
                scale=attention.head_dim**-0.5,
                dropout=attention.dropout,
                output=attention.out_proj,
                norm=self.ln_1,
            ),
            FeedForwardParts(
                intermediate=feed_forward["c_fc"],
                activation=feed_forward["gelu"],
                output=feed_forward["c_proj"],
                norm=self.ln_2,
            ),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        return self.attn, self.ln_1, self.ln_2, self.mlp

    def forward(self, hidden_state: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        """As of PackedLayer, where it is not called packed in transformers' layout."""
        if isinstance(attention_mask, PackedContext):
            return self.forward_packed(hidden_state, attention_mask)
        covered = attention_mask is None and self.attn_mask is None and runs_packed(hidden_state, None, (), {})
        if not covered or self.has_inner_hooks():
            return BridgeTowerResidualAttention.forward(self, hidden_state, attention_mask)
        batch = RaggedBatch.pack(hidden_state.transpose(0, 1))
        return batch.replace(self.forward_packed(batch.values, PackedContext(batch))).unpack().transpose(0, 1)


class PackedBridgeTowerCrossLayer(PostNormLayer, BridgeTowerBertCrossLayer):
    """Runs packed where the model does; its self attention says is_causal, and is not."""

    def parts(self) -> LayerParts:
        return LayerParts(
            bert_like_attention(self.attention),
            bert_like_feed_forward(self),
            bert_like_attention(self.crossattention),
        )

    def uncalled(self) -> tuple[nn.Module, ...]:
        found: list[nn.Module] = [self.intermediate, self.output, self.output.LayerNorm]
        for attention in (self.attention, self.crossattention):
            found += [attention, attention.self, attention.output, attention.output.LayerNorm]
        return tuple(found)

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """As of PackedLayer, the context in the place of `encoder_hidden_states`; else as transformers wrote it."""
        if isinstance(encoder_hidden_states, PackedContext):
            return self.forward_packed(hidden_states, encoder_hidden_states)
        return BridgeTowerBertCrossLayer.forward(self, hidden_states, encoder_hidden_states, *args, **kwargs)


class PackedBridgeTowerModel(PackedModel, BridgeTowerModel):
    """Packs the text and the image once, and runs both towers and the layers between them on the packed tokens."""

    original_class = BridgeTowerModel

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_token_type_idx: int | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As of BridgeTowerModel."""
        if input_ids is None or not self._covers(attention_mask, kwargs):
            return BridgeTowerModel.forward(
                self,
                input_ids,
                attention_mask,
                token_type_ids,
                pixel_values,
                pixel_mask,
                inputs_embeds,
                image_embeds,
                image_token_type_idx,
                labels,
                interpolate_pos_encoding,
                **kwargs,
            )
        pack_weights(self)
        visual = self.vision_model.visual
        if image_embeds is None:
            assert pixel_values is not None
            image_states = visual.forward_pre(pixel_values.type(self.vision_model.dtype), interpolate_pos_encoding)
            image_states = image_states.transpose(0, 1)
        else:
            image_states = image_embeds
        mask = None if attention_mask is None else attention_mask != 0
        text = RaggedBatch.pack(self.text_model.embeddings(input_ids=input_ids), mask)
        return self._fuse(text, RaggedBatch.pack(image_states), image_token_type_idx or 1)

    def _covers(self, mask: torch.Tensor | None, arguments: dict[str, Any]) -> bool:
        weight = self.token_type_embeddings.weight
        layers = [module for module in self.modules() if isinstance(module, PackedLayer)]
        return (
            (mask is None or mask.dim() == 2)
            and runs_packed(weight, None, (), arguments)
            and not self.config.output_attentions
            and len(layers)
            == len(self.text_model.encoder.layer)
            + len(self.vision_model.visual.transformer.resblocks)
            + 2 * len(self.cross_modal_text_layers)
            and not any(layer.has_inner_hooks() for layer in layers)
        )

    def _fuse(self, text: RaggedBatch, image: RaggedBatch, image_token_type: int) -> BridgeTowerModelOutput:
        visual = self.vision_model.visual
        text_layers, image_layers = self.text_model.encoder.layer, visual.transformer.resblocks
        types = self.token_type_embeddings.weight
        text_type, image_type = types[0], types[image_token_type]
        text_towers: Any = self.cross_modal_text_link_tower
        image_towers: Any = self.cross_modal_image_link_tower
        text_states, image_states, cross_states = [text], [image], []
        cross_text = cross_image = None
        first_fusion = len(text_layers) - self.config.num_hidden_layers
        for index in range(len(text_layers)):
            text = text.replace(text_layers[index](text.values, PackedContext(text)))
            image = image.replace(image_layers[index](image.values, PackedContext(image)))
            text_states.append(text)
            image_states.append(image)
            fusion = index - first_fusion
            if fusion < 0:
                continue
            seen_text = self._apply_text_transform(text.values, fusion) + text_type
            seen_image = self._apply_image_transform(normalize(visual.ln_post, image.values), fusion) + image_type
            if cross_text is None or cross_image is None:
                new_text = normalize(self.cross_modal_text_layernorm, seen_text)
                new_image = normalize(self.cross_modal_image_layernorm, seen_image)
            else:
                new_text = text_towers[fusion - 1](seen_text, cross_text, None)
                new_image = image_towers[fusion - 1](seen_image, cross_image, None)
            cross_text = self.cross_modal_text_layers[fusion](
                new_text, PackedContext(text, memory=image.replace(new_image))
            )
            cross_image = self.cross_modal_image_layers[fusion](
                new_image, PackedContext(image, memory=text.replace(new_text))
            )
            cross_states.append((text.replace(cross_text).unpack(), image.replace(cross_image).unpack()))
        text_features, image_features = cross_states[-1]
        hidden_states: Any = (
            tuple(states.unpack() for states in text_states),
            tuple(states.unpack().transpose(0, 1) for states in image_states),
            tuple(cross_states),
        )
        attentions: Any = tuple((None, None) for _ in cross_states)
        return BridgeTowerModelOutput(
            text_features=text_features,
            image_features=image_features,
            pooler_output=self.get_cls_features(text_features, image_features),
            hidden_states=hidden_states,
            attentions=attentions,
        )


register(
    Adapter(
        "BridgeTower text",
        BridgeTowerTextModel,
        {BridgeTowerTextEncoder: PackedBridgeTowerTextEncoder, BridgeTowerTextLayer: PackedBridgeTowerTextLayer},
    )
)
register(
    Adapter(
        "BridgeTower vision",
        BridgeTowerVisionModel,
        {BridgeTowerResidualAttention: PackedBridgeTowerVisionLayer},
    )
)
register(
    Adapter(
        "BridgeTower",
        BridgeTowerModel,
        {
            BridgeTowerModel: PackedBridgeTowerModel,
            BridgeTowerTextEncoder: PackedBridgeTowerTextEncoder,
            BridgeTowerTextLayer: PackedBridgeTowerTextLayer,
            BridgeTowerResidualAttention: PackedBridgeTowerVisionLayer,
            BridgeTowerBertCrossLayer: PackedBridgeTowerCrossLayer,
        },
    )
)
