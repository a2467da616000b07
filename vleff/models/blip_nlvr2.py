"""BLIP for NLVR2: does a sentence describe a pair of images?

Li et al., "BLIP: Bootstrapping Language-Image Pre-training" (ICML 2022), section 5.4 and figure 5b, which
transformers lacks: every layer of the text encoder attends to both images, each with projections of its own, and
joins the two results: their average in the lower layers, a learned projection of both in the upper ones.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import dropout
from transformers import BlipConfig, BlipVisionModel, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.blip.modeling_blip_text import (
    BlipTextAttention,
    BlipTextEmbeddings,
    BlipTextIntermediate,
    BlipTextOutput,
    BlipTextSelfAttention,
)

from vleff.models.bert import bert_like_attention, bert_like_feed_forward
from vleff.models.encoder import pack_weights
from vleff.models.layer import (
    AttentionParts,
    LayerParts,
    PackedContext,
    PackedLayer,
    additive_mask,
    attend,
    normalize,
    project_output,
    run_feed_forward,
    runs_packed,
    trimmed_context,
)
from vleff.models.registry import Adapter, register
from vleff.models.trimming import (
    Controls,
    LayerSpec,
    Stream,
    StreamSpec,
    Trimmable,
    active_trimming,
    block_spec,
    layer_spec,
    refuse_watchers,
)
from vleff.nn.ragged import RaggedBatch

_FIRST_MERGING_LAYER = 6  # of the released model's twelve (reconstruction: the paper says "the upper layers")


class TwinOutput(nn.Module):
    """Joins the attention to two images: residual + projection, then LayerNorm."""

    def __init__(self, config: Any, merges: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        if merges:
            self.merge_layer = nn.Linear(2 * width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def join(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """[.., d] of each image, projected -> [.., d], before dropout, residual and norm."""
        return (
            self.merge_layer(torch.cat([first, second], -1)) if hasattr(self, "merge_layer") else (first + second) / 2
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        joined = self.join(self.dense0(first), self.dense1(second))
        return self.LayerNorm(self.dropout(joined) + residual)


class TwinCrossAttention(nn.Module):
    """Cross attention to two images, each with its own query, key and value projections."""

    def __init__(self, config: Any, layer_number: int) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True, layer_idx=layer_number)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True, layer_idx=layer_number)
        self.output = TwinOutput(config, merges=layer_number >= _FIRST_MERGING_LAYER)

    def forward(self, hidden_states: torch.Tensor, images: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        first, second = (
            attention(hidden_states, encoder_hidden_states=image)[0]
            for attention, image in zip((self.self0, self.self1), images, strict=True)
        )
        return self.output(first, second, hidden_states)


class BlipNLVR2Layer(GradientCheckpointingLayer):
    """Self attention, attention to both images, feed-forward; post-norm."""

    def __init__(self, config: Any, layer_number: int) -> None:
        super().__init__()
        self.attention = BlipTextAttention(config, layer_idx=layer_number)
        self.crossattention = TwinCrossAttention(config, layer_number)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextOutput(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any, images: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """hidden_states [batch, length, d], attention_mask to add or None, images two of [batch, tokens, d]"""
        hidden_states = self.attention(hidden_states, attention_mask)[0]
        hidden_states = self.crossattention(hidden_states, images)
        return self.output(self.intermediate(hidden_states), hidden_states)


class PackedBlipNLVR2Layer(PackedLayer, BlipNLVR2Layer):
    def parts(self) -> LayerParts:
        return LayerParts(bert_like_attention(self.attention), bert_like_feed_forward(self))

    def uncalled(self) -> tuple[nn.Module, ...]:
        attention, cross = self.attention, self.crossattention
        blocks = (attention, attention.self, attention.output, attention.output.LayerNorm, self.intermediate)
        twins = (cross, cross.self0, cross.self1, cross.output, cross.output.LayerNorm)
        return (*blocks, *twins, self.output, self.output.LayerNorm)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, images: Any = None, controls: Any = None
    ) -> Any:
        """Packed with a PackedContext for the mask, RaggedBatches for the images and Controls, if any, for what the
        blocks of `blocks()` leave out."""
        if isinstance(attention_mask, PackedContext):
            return self._forward_packed(hidden_states, attention_mask, images, controls or {})
        return BlipNLVR2Layer.forward(self, hidden_states, attention_mask, images)

    def blocks(self, text_width: int, image_width: int) -> LayerSpec:
        """Attention to the text ("own") and to each image ("first", "second"), and the multiply-adds of the rest."""
        cross, parts = self.crossattention, self.parts()
        merged = cross.output.merge_layer.weight.numel() if hasattr(cross.output, "merge_layer") else 0
        blocks = [block_spec("own", parts.attention, "text", text_width)]
        for name, block in zip(("first", "second"), self._cross_parts(), strict=True):
            blocks.append(block_spec(name, block, name, image_width))
        spec = layer_spec(blocks, parts.feed_forward)
        return spec._replace(feed_forward=spec.feed_forward + merged)

    def _cross_parts(self) -> tuple[AttentionParts, AttentionParts]:
        """The attention to each image, without dropout and norm of its output."""
        cross = self.crossattention
        return _projections(cross.self0, cross.output.dense0), _projections(cross.self1, cross.output.dense1)

    def _forward_packed(
        self,
        values: torch.Tensor,
        context: PackedContext,
        images: tuple[RaggedBatch, RaggedBatch],
        controls: Controls,
    ) -> torch.Tensor:
        parts, training, cross = self.parts(), self.training, self.crossattention
        own = parts.attention
        attended = attend(own, values, values, context.batch, context, training)
        values = normalize(own.norm, project_output(own, attended, context, training), values)
        projected = []
        for name, block, image in zip(("first", "second"), self._cross_parts(), images, strict=True):
            to_image = PackedContext(context.batch, own=controls.get(name))
            attended = attend(block, values, image.values, image, to_image, training)
            projected.append(project_output(block, attended, to_image, training))
        joined = dropout(cross.output.join(*projected), cross.output.dropout.p, training)
        values = normalize(cross.output.LayerNorm, joined, values)
        output = run_feed_forward(parts.feed_forward, values, training)
        return normalize(parts.feed_forward.norm, output, values)


def _projections(attention: Any, output: nn.Module) -> AttentionParts:
    return AttentionParts(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        head_dim=attention.attention_head_size,
        scale=attention.attention_head_size**-0.5,
        dropout=attention.dropout.p,
        output=output,
        norm=nn.Identity(),
    )


class BlipNLVR2Encoder(nn.Module):
    """The text encoder's layers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BlipNLVR2Layer(config, number) for number in range(config.num_hidden_layers)])


class BlipForNLVR2(Trimmable, PreTrainedModel):
    """BLIP with a text encoder that attends to two images and a classifier on its first token.

    Args:
        config: BlipConfig; config.num_labels is 2.
    """

    config_class = BlipConfig
    config: BlipConfig
    base_model_prefix = "blip_nlvr2"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.vision_model = BlipVisionModel(config.vision_config)  # type: ignore[arg-type]
        self.embeddings = BlipTextEmbeddings(text)
        self.encoder = BlipNLVR2Encoder(text)
        self.classifier = nn.Sequential(
            nn.Linear(text.hidden_size, text.hidden_size),
            nn.ReLU(),
            nn.Linear(text.hidden_size, config.num_labels or 2),
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipTextEmbeddings):  # a buffer that no checkpoint holds
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1]))

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Args:
            input_ids: int64 [batch, length].
            pixel_values: [batch, 2, 3, height, width].
            attention_mask: [batch, length], zero at padding; None without any.
            labels: int64 [batch], for the loss (cross-entropy).
            output_hidden_states: whether the text's states, before the first layer and after each one, are returned.
                Such a call is computed as if the model were not accelerated.

        Returns:
            SequenceClassifierOutput with logits [batch, labels], or a tuple where `return_dict` is False.

        Raises:
            ValueError: `pixel_values` or `attention_mask` has another shape.
        """
        if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
            raise ValueError(f"pixel_values: expected [batch, 2, 3, height, width], got {list(pixel_values.shape)}")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            expected, got = list(input_ids.shape), list(attention_mask.shape)
            raise ValueError(f"attention_mask: expected [batch, length] = {expected}, got {got}")
        text = self.embeddings(input_ids)
        if active_trimming(self) is not None:
            arguments = {"output_hidden_states": output_hidden_states}
            refuse_watchers(arguments, self.config, None if self._covers(text) else "hooks, a dtype or a device")
            last: Any = self._encode_trimmed(text, attention_mask, pixel_values.flatten(0, 1))
            return self._output(last, None, labels, return_dict)
        images = self.vision_model(pixel_values.flatten(0, 1)).last_hidden_state.unflatten(0, (-1, 2))
        pair = images[:, 0], images[:, 1]
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states = None
        if output_hidden_states or not self._covers(text):
            states = self._encode(text, attention_mask, pair)
        last = self._encode_packed(text, attention_mask, pair) if states is None else states[-1]
        return self._output(last, states if output_hidden_states else None, labels, return_dict)

    def _output(
        self, last: torch.Tensor, hidden_states: Any, labels: torch.Tensor | None, return_dict: bool | None
    ) -> Any:
        logits = self.classifier(last[:, 0])
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _encode(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None, images: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The states before the first layer and after each one."""
        mask: Any = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=attention_mask)
        mask = additive_mask(mask, states.dtype)
        all_states = [states]
        for layer in self.encoder.layer:
            all_states.append(layer(all_states[-1], mask, images))
        return tuple(all_states)

    def _covers(self, states: torch.Tensor) -> bool:
        return runs_packed(states, None, (), {}) and not any(
            not isinstance(layer, PackedBlipNLVR2Layer) or layer.has_inner_hooks() for layer in self.encoder.layer
        )

    def _encode_packed(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None, images: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        pack_weights(self.encoder)
        batch = RaggedBatch.pack(states, None if attention_mask is None else attention_mask != 0)
        packed = (RaggedBatch.pack(images[0]), RaggedBatch.pack(images[1]))
        values, context = batch.values, PackedContext(batch)
        for layer in self.encoder.layer:
            values = layer(values, context, packed)
        return batch.replace(values).unpack()

    def _encode_trimmed(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        vision: Any = self.vision_model
        both = vision.run_trimmed(pixel_values, False, {})
        images = both.every_other_sample(0), both.every_other_sample(1)
        pack_weights(self.encoder)
        stream = Stream.pack(states, None if attention_mask is None else attention_mask != 0)
        trimming = active_trimming(self)
        assert trimming is not None
        run = trimming.begin(stream, *images)
        packed = images[0].tokens, images[1].tokens
        for number, layer in enumerate(self.encoder.layer):
            (stream, controls), *_ = run.before_layer(number, stream, *images)
            context = trimmed_context(stream, controls)
            stream = stream.replace(layer(stream.values, context, packed, controls))
        run.finish(stream, *images)
        return stream.unpack()

    def streams(self) -> tuple[StreamSpec, ...]:
        """The text, and the two images that it attends to; the vision model has a stream of its own."""
        layers: list[Any] = list(self.encoder.layer)
        if not all(isinstance(layer, PackedBlipNLVR2Layer) for layer in layers):
            return ()
        config: Any = self.config
        widths = config.text_config.hidden_size, config.vision_config.hidden_size
        specs = tuple(layer.blocks(*widths) for layer in layers)
        images = tuple(StreamSpec(name, widths[1], ()) for name in ("first", "second"))
        return StreamSpec("text", widths[0], specs, others=("first", "second")), *images


def load_original_state_dict(model: BlipForNLVR2, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Loads a checkpoint in the layout that BLIP's authors released for NLVR2.

    Not tried on a released file.

    Returns:
        the names in `state_dict` that the model has no place for.

    Raises:
        RuntimeError: a parameter of the model is missing there, or has another shape.
    """
    wanted = model.state_dict()
    ours, unknown = {}, []
    for name, value in state_dict.items():
        renamed = _rename(name)
        if renamed in wanted:
            ours[renamed] = value
        else:
            unknown.append(name)
    model.load_state_dict(ours)
    return unknown


# the vision tower is timm's ViT
_VISION_NAMES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)


def _rename(name: str) -> str:
    if name.startswith("visual_encoder."):
        for theirs, ours in _VISION_NAMES:
            name = name.replace(theirs, ours)
        return name
    return name.removeprefix("text_encoder.").replace("cls_head.", "classifier.")


register(Adapter("BLIP-NLVR2", BlipForNLVR2, {BlipNLVR2Layer: PackedBlipNLVR2Layer}))
