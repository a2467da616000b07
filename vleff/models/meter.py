"""METER: CLIP's vision model and RoBERTa, fused by layers in which both attend to each other.

Dou et al., "An Empirical Study of Training End-to-End Vision-and-Language Transformers" (CVPR 2022), which
transformers lacks. Its co-attention (section 3.2, "co-attention model") is assembled from transformers' parts.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer, BridgeTowerPooler
from transformers.utils import ModelOutput

from vleff.models.bridgetower import PackedBridgeTowerCrossLayer
from vleff.models.encoder import co_attending_stream, pack_weights
from vleff.models.layer import PackedContext, normalize, runs_packed, trimmed_context
from vleff.models.registry import Adapter, register
from vleff.models.trimming import Controls, Stream, StreamSpec, Trimmable, active_trimming
from vleff.nn.ragged import RaggedBatch


class MeterConfig(PreTrainedConfig):
    """Sizes of METER; the defaults are those of CLIP ViT-B/16 at 288 pixels with RoBERTa-base.

    Attributes:
        text_config: of the RobertaModel.
        vision_config: of the CLIPVisionModel. Its default leaves CLIP's last layer out, as the released models do
            (reconstruction: the paper does not say so).
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, hidden_dropout_prob,
            attention_probs_dropout_prob, layer_norm_eps: of the co-attention layers; there are num_hidden_layers
            for each modality.
        modality_types: size of the table of modality embeddings: text, image and, for NLVR2, a second image.
    """

    model_type = "meter"
    sub_configs: ClassVar[Any] = {"text_config": RobertaConfig, "vision_config": CLIPVisionConfig}

    text_config: Any = None
    vision_config: Any = None
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    modality_types: int = 3
    is_decoder: bool = False
    add_cross_attention: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        text, vision = self.text_config, self.vision_config
        if not isinstance(text, PreTrainedConfig):
            roberta = {
                "vocab_size": 50265,
                "max_position_embeddings": 514,
                "type_vocab_size": 1,
                "layer_norm_eps": 1e-5,
            }
            self.text_config = RobertaConfig(**(roberta | (text or {})))
        if not isinstance(vision, PreTrainedConfig):
            clip = {"image_size": 288, "patch_size": 16, "num_hidden_layers": 11}
            self.vision_config = CLIPVisionConfig(**(clip | (vision or {})))
        super().__post_init__(**kwargs)


@dataclass
class MeterModelOutput(ModelOutput):
    """What MeterModel returns.

    Attributes:
        text_features: [batch, length, hidden_size], of the last co-attention layer.
        image_features: [batch, 1 + patches, hidden_size], likewise, the class token first.
        pooler_output: [batch, 2 * hidden_size], both modalities' first tokens, pooled.
    """

    text_features: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class MeterPreTrainedModel(PreTrainedModel):
    """What the METER models share."""

    config_class = MeterConfig
    config: MeterConfig
    base_model_prefix = "meter"
    # SDPA would take the co-attention layers for causal ones where there is no mask
    _supports_sdpa = False
    supports_gradient_checkpointing = True


class MeterModel(Trimmable, MeterPreTrainedModel):
    """Both towers, then co-attention: each layer of a modality attends to itself and to the other one's states
    before that layer, x1 = text_layer(x, y), y1 = image_layer(y, x)."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.text_model = RobertaModel(text, add_pooling_layer=False)
        self.vision_model = CLIPVisionModel(vision)
        self.cross_modal_text_transform = nn.Linear(text.hidden_size, config.hidden_size)
        self.cross_modal_image_transform = nn.Linear(vision.hidden_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.modality_types, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.cross_modal_text_layers = nn.ModuleList([BridgeTowerBertCrossLayer(config) for _ in layers])
        self.cross_modal_image_layers = nn.ModuleList([BridgeTowerBertCrossLayer(config) for _ in layers])
        self.cross_modal_text_pooler = BridgeTowerPooler(config)
        self.cross_modal_image_pooler = BridgeTowerPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_token_type: int = 1,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Args:
            input_ids: int64 [batch, length]; or `inputs_embeds` [batch, length, d of RoBERTa].
            attention_mask: [batch, length], zero at padding; None without any.
            pixel_values: [batch, 3, height, width]; or `image_embeds` [batch, 1 + patches, d of CLIP], as the
                vision model makes them after its last LayerNorm.
            image_token_type: which modality embedding the image gets: 1, or 2 for a second image.

        Returns:
            MeterModelOutput, or a tuple where `return_dict` is False.

        Raises:
            ValueError: text or image is missing or given twice.
        """
        for name, first, second in (
            ("input_ids or inputs_embeds", input_ids, inputs_embeds),
            ("pixel_values or image_embeds", pixel_values, image_embeds),
        ):
            if (first is None) == (second is None):
                raise ValueError(f"{name}: expected exactly one of the two, got {'none' if first is None else 'both'}")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask: expected [batch, length], got {list(attention_mask.shape)}")
        if self._is_trimmed():
            return self._forward_trimmed(
                self.text_model.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds),
                attention_mask,
                pixel_values,
                image_embeds,
                image_token_type,
                return_dict,
            )
        text = self.text_model(input_ids, attention_mask, inputs_embeds=inputs_embeds).last_hidden_state
        if image_embeds is None:
            states = self.vision_model(pixel_values=pixel_values).last_hidden_state
            image_embeds = self.vision_model.post_layernorm(states)
        assert image_embeds is not None
        types = self.token_type_embeddings.weight
        text = self.cross_modal_text_transform(text) + types[0]
        image = self.cross_modal_image_transform(image_embeds) + types[image_token_type]
        fuse = self._fuse_packed if self._covers(text) else self._fuse
        return self._output(*fuse(text, image, attention_mask), return_dict)

    def _output(self, text: torch.Tensor, image: torch.Tensor, return_dict: bool | None) -> Any:
        pooled = torch.cat([self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)], -1)
        output = MeterModelOutput(text_features=text, image_features=image, pooler_output=pooled)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _is_trimmed(self) -> bool:
        modules = (self, self.text_model.encoder, self.vision_model.encoder)
        return any(active_trimming(module) is not None for module in modules)

    def _forward_trimmed(
        self,
        text: torch.Tensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image: torch.Tensor | None,
        image_token_type: int,
        return_dict: bool | None,
    ) -> Any:
        """Packed from the embeddings to the end: what a tower drops, nothing after it sees."""
        vision = self.vision_model
        text_encoder: Any = self.text_model.encoder
        image_encoder: Any = vision.encoder
        for encoder in (text_encoder, image_encoder):
            encoder.refuse_watched_call(self._covers(text), {})
        mask = None if attention_mask is None else attention_mask != 0
        x = text_encoder.run_trimmed(Stream.pack(text, mask))
        if image is None:
            y = image_encoder.run_trimmed(Stream.pack(vision.pre_layrnorm(vision.embeddings(pixel_values))))
            y = y.replace(normalize(vision.post_layernorm, y.values))
        else:
            y = Stream.pack(image)
        types = self.token_type_embeddings.weight
        x = x.replace(self.cross_modal_text_transform(x.values) + types[0])
        y = y.replace(self.cross_modal_image_transform(y.values) + types[image_token_type])
        pack_weights(self.cross_modal_text_layers)
        pack_weights(self.cross_modal_image_layers)
        trimming = active_trimming(self)
        run = None if trimming is None else trimming.begin(x, y)
        x_controls: Controls = {}
        y_controls: Controls = {}
        layers = zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True)
        for number, (text_layer, image_layer) in enumerate(layers):
            if run is not None:
                (x, x_controls), (y, y_controls) = run.before_layer(number, x, y)
            x, y = (
                x.replace(text_layer(x.values, trimmed_context(x, x_controls, y))),
                y.replace(image_layer(y.values, trimmed_context(y, y_controls, x))),
            )
        if run is not None:
            run.finish(x, y)
        return self._output(x.unpack(), y.unpack(), return_dict)

    def streams(self) -> tuple[StreamSpec, ...]:
        """Text and image in the co-attention layers; the towers have streams of their own."""
        width = self.config.hidden_size
        text_layers: list[Any] = list(self.cross_modal_text_layers)
        image_layers: list[Any] = list(self.cross_modal_image_layers)
        if not all(isinstance(layer, PackedBridgeTowerCrossLayer) for layer in (*text_layers, *image_layers)):
            return ()
        return (
            co_attending_stream("text", "image", width, text_layers),
            co_attending_stream("image", "text", width, image_layers),
        )

    def _fuse(
        self, text: torch.Tensor, image: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=text, attention_mask=attention_mask)
        to_text = create_bidirectional_mask(
            config=self.config, inputs_embeds=image, attention_mask=attention_mask, encoder_hidden_states=text
        )
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            text, image = (
                text_layer(text, image, attention_mask=mask)[0],
                image_layer(image, text, encoder_attention_mask=to_text)[0],
            )
        return text, image

    def _covers(self, text: torch.Tensor) -> bool:
        layers = [*self.cross_modal_text_layers, *self.cross_modal_image_layers]
        return runs_packed(text, None, (), {}) and not any(
            not isinstance(layer, PackedBridgeTowerCrossLayer) or layer.has_inner_hooks() for layer in layers
        )

    def _fuse_packed(
        self, text: torch.Tensor, image: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pack_weights(self.cross_modal_text_layers)
        pack_weights(self.cross_modal_image_layers)
        x = RaggedBatch.pack(text, None if attention_mask is None else attention_mask != 0)
        y = RaggedBatch.pack(image)
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            x, y = (
                x.replace(text_layer(x.values, PackedContext(x, memory=y))),
                y.replace(image_layer(y.values, PackedContext(y, memory=x))),
            )
        return x.unpack(), y.unpack()


register(Adapter("METER", MeterModel, {BridgeTowerBertCrossLayer: PackedBridgeTowerCrossLayer}))
