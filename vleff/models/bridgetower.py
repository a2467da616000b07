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
from vleff.models.encoder import PackedModel, co_attending_stream, pack_weights, self_attending_stream
from vleff.models.head_projections import StackedProjection
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
    trimmed_context,
)
from vleff.models.registry import Adapter, register
from vleff.models.trimming import (
    LayerSpec,
    Stream,
    StreamSpec,
    Trimmable,
    Trimming,
    active_trimming,
    refuse_watchers,
)
from vleff.nn.ragged import RaggedBatch


class PackedBridgeTowerTextLayer(BertLikeLayer, BridgeTowerTextLayer):
    pass


class PackedBridgeTowerTextEncoder(BertLikeEncoder, BridgeTowerTextEncoder):
    pass


class PackedBridgeTowerVisionLayer(PreNormLayer, BridgeTowerResidualAttention):
    """Called by transformers with [length, batch, d]."""

    def parts(self) -> LayerParts:
        attention, feed_forward = self.attn, self.mlp
        return LayerParts(
            AttentionParts(
                qkv=StackedProjection(attention, "in_proj_weight", "in_proj_bias"),
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


class PackedBridgeTowerModel(PackedModel, Trimmable, BridgeTowerModel):
    """Packs the text and the image once, and runs both towers and the layers between them on the packed tokens."""

    original_class = BridgeTowerModel
    holds_streams_inside = True

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
        covered = input_ids is not None and self._covers(attention_mask, kwargs)
        trimming = active_trimming(self)
        if trimming is not None:  # the last hidden states are returned in any case
            refuse_watchers(
                {**kwargs, "output_hidden_states": False},
                self.config,
                None if covered else "embeddings for ids, a mask, hooks, a dtype or a device that is not packed",
            )
        if not covered:
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
        text_states = self.text_model.embeddings(input_ids=input_ids)
        if trimming is not None:
            streams = Stream.pack(text_states, mask), Stream.pack(image_states)
            return self._fuse_trimmed(*streams, image_token_type_idx or 1, trimming)
        return self._fuse(
            RaggedBatch.pack(text_states, mask), RaggedBatch.pack(image_states), image_token_type_idx or 1
        )

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

    def _link(
        self,
        fusion: int,
        text: torch.Tensor,
        image: torch.Tensor,
        cross_text: torch.Tensor | None,
        cross_image: torch.Tensor | None,
        image_token_type: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer between the towers gets: both towers' states, joined with what the layer before made.

        All [total_tokens, d] of text or image; `cross_text` and `cross_image` are None before the first such layer.
        """
        types = self.token_type_embeddings.weight
        seen_text = self._apply_text_transform(text, fusion) + types[0]
        normalized = normalize(self.vision_model.visual.ln_post, image)
        seen_image = self._apply_image_transform(normalized, fusion) + types[image_token_type]
        if cross_text is None or cross_image is None:
            return (
                normalize(self.cross_modal_text_layernorm, seen_text),
                normalize(self.cross_modal_image_layernorm, seen_image),
            )
        text_towers: Any = self.cross_modal_text_link_tower
        image_towers: Any = self.cross_modal_image_link_tower
        return (
            text_towers[fusion - 1](seen_text, cross_text, None),
            image_towers[fusion - 1](seen_image, cross_image, None),
        )

    def _fuse_trimmed(
        self, text: Stream, image: Stream, image_token_type: int, trimming: Trimming
    ) -> BridgeTowerModelOutput:
        """As of `_fuse`, with tokens dropped. A stream's values are the towers' states and, once there are layers
        between the towers, the states of these, which then carry the towers' states along.

        Of hidden states, the last ones are returned.
        """
        text_layers: Any = self.text_model.encoder.layer
        image_layers: Any = self.vision_model.visual.transformer.resblocks
        first_fusion = len(text_layers) - self.config.num_hidden_layers
        run = trimming.begin(text, image)
        for index in range(len(text_layers)):
            (text, text_controls), (image, image_controls) = run.before_layer(index, text, image)
            text_states, cross_text = _towers_states(text)
            image_states, cross_image = _towers_states(image)
            text_context = PackedContext(text.tokens, own=text_controls.get("tower"))
            image_context = PackedContext(image.tokens, own=image_controls.get("tower"))
            text_states = text_layers[index](text_states, text_context)
            image_states = image_layers[index](image_states, image_context)
            fusion = index - first_fusion
            if fusion < 0:
                text, image = text.replace(text_states), image.replace(image_states)
                continue
            new_text, new_image = self._link(
                fusion, text_states, image_states, cross_text, cross_image, image_token_type
            )
            seen_text, seen_image = text.replace(new_text), image.replace(new_image)
            cross_text = self.cross_modal_text_layers[fusion](
                new_text, trimmed_context(text, text_controls, seen_image)
            )
            cross_image = self.cross_modal_image_layers[fusion](
                new_image, trimmed_context(image, image_controls, seen_text)
            )
            text = text.with_carried(cross_text, text_states)
            image = image.with_carried(cross_image, image_states)
        run.finish(text, image)
        features = text.unpack(), image.unpack()
        text_states, _ = _towers_states(text)
        image_states, _ = _towers_states(image)
        hidden_states: Any = (
            (text.with_carried(text_states).unpack(),),
            (image.with_carried(image_states).unpack().transpose(0, 1),),
            (features,),
        )
        return BridgeTowerModelOutput(
            text_features=features[0],
            image_features=features[1],
            pooler_output=self.get_cls_features(*features),
            hidden_states=hidden_states,
        )

    def streams(self) -> tuple[StreamSpec, ...]:
        """Text and image, each through its tower and the layers between the towers."""
        text: Any = self.text_model.encoder.layer
        image: Any = self.vision_model.visual.transformer.resblocks
        fusing: tuple[Any, ...] = (list(self.cross_modal_text_layers), list(self.cross_modal_image_layers))
        if not all(isinstance(layer, PackedLayer) for layer in (*text, *image, *fusing[0], *fusing[1])):
            return ()
        config: Any = self.config
        width = config.hidden_size
        if not width == config.text_config.hidden_size == config.vision_config.hidden_size:
            return ()  # trimmers see the states of towers and of the layers between them in turn
        return (
            _tower_stream("text", "image", width, list(text), fusing[0]),
            _tower_stream("image", "text", width, list(image), fusing[1]),
        )

    def _fuse(self, text: RaggedBatch, image: RaggedBatch, image_token_type: int) -> BridgeTowerModelOutput:
        visual = self.vision_model.visual
        text_layers, image_layers = self.text_model.encoder.layer, visual.transformer.resblocks
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
            new_text, new_image = self._link(
                fusion, text.values, image.values, cross_text, cross_image, image_token_type
            )
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


def _towers_states(stream: Stream) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tower's states, and those of the layers between the towers, None before there are any."""
    return (stream.carried[0], stream.values) if stream.carried else (stream.values, None)


def _tower_stream(name: str, other: str, width: int, tower: list[Any], fusing: list[Any]) -> StreamSpec:
    """The spec of a stream through a tower's layers, the last of which are each followed by a fusing layer."""
    own = self_attending_stream(name, tower)
    fused = co_attending_stream(name, other, width, fusing)
    layers = []
    for number, layer in enumerate(own.layers):
        layer = layer._replace(blocks=tuple(block._replace(name="tower") for block in layer.blocks))
        fusion = number - (len(tower) - len(fusing))
        if fusion >= 0:
            more = fused.layers[fusion]
            transform = width * width
            layer = LayerSpec(layer.blocks + more.blocks, layer.feed_forward + more.feed_forward + transform)
        layers.append(layer)
    return StreamSpec(name, width, tuple(layers), others=(other,))


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
