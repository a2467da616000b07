"""ViLT: one stream of text tokens and image patches, in pre-norm layers with attention of their own."""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.vilt.modeling_vilt import ViltEmbeddings, ViltEncoder, ViltLayer, ViltModel

from vleff.models.encoder import PackedEncoder, PackedModel, self_attending_stream, unpack_stream
from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PreNormLayer, normalize, runs_packed
from vleff.models.registry import Adapter, register
from vleff.models.trimming import Stream, StreamSpec, active_trimming
from vleff.models.vilt_patches import draw_patches, embed_patches


class PackedViltLayer(PreNormLayer, ViltLayer):
    returns_tuple = True
    own_attention = True

    def parts(self) -> LayerParts:
        attention = self.attention.attention
        return LayerParts(
            AttentionParts(
                query=attention.query,
                key=attention.key,
                value=attention.value,
                head_dim=attention.attention_head_size,
                scale=attention.attention_head_size**-0.5,
                dropout=attention.dropout.p,
                output=self.attention.output.dense,
                output_dropout=self.attention.output.dropout.p,
                norm=self.layernorm_before,
            ),
            FeedForwardParts(
                intermediate=self.intermediate.dense,
                activation=self.intermediate.intermediate_act_fn,
                output=self.output.dense,
                output_dropout=self.output.dropout.p,
                norm=self.layernorm_after,
            ),
        )

    def uncalled(self) -> tuple[Any, ...]:
        attention = self.attention
        return (
            attention,
            attention.attention,
            attention.output,
            self.intermediate,
            self.output,
            self.layernorm_before,
            self.layernorm_after,
        )


class PackedViltEncoder(PackedEncoder, ViltEncoder):
    output_class = BaseModelOutput
    own_attention = True

    def streams(self) -> tuple[StreamSpec, ...]:
        return (self_attending_stream("tokens", self.packed_layers(), modalities=2),)


class PackedViltEmbeddings(ViltEmbeddings):
    """The same patches in the same random order under the same seed, without loops over patches."""

    def visual_embed(self, pixel_values: Any, pixel_mask: Any, max_image_length: int = 200) -> tuple[Any, Any, Any]:
        patches = draw_patches(pixel_mask, self.config.patch_size, max_image_length)
        return embed_patches(self, pixel_values, pixel_mask, patches)


class TrimmedViltModel(PackedModel, ViltModel):
    """Tells text tokens from image tokens, which the encoder cannot."""

    original_class = ViltModel

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        pixel_values: Any = None,
        pixel_mask: Any = None,
        inputs_embeds: Any = None,
        image_embeds: Any = None,
        image_token_type_idx: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of ViltModel; dropped tokens are zeros in `last_hidden_state`."""
        images = pixel_values if pixel_values is not None else image_embeds
        text = input_ids if input_ids is not None else inputs_embeds
        if active_trimming(self.encoder) is None or text is None or images is None:  # the latter two are refused there
            return ViltModel.forward(
                self,
                input_ids,
                attention_mask,
                token_type_ids,
                pixel_values,
                pixel_mask,
                inputs_embeds,
                image_embeds,
                image_token_type_idx,
                **kwargs,
            )
        batch, text_length = text.shape[:2]
        if attention_mask is None:
            attention_mask = text.new_ones((batch, text_length), dtype=torch.long)
        if pixel_mask is None:
            size: Any = self.config.image_size
            pixel_mask = torch.ones((batch, size, size), device=text.device)
        states, mask = self.embeddings(
            input_ids,
            attention_mask,
            token_type_ids,
            pixel_values,
            pixel_mask,
            inputs_embeds,
            image_embeds,
            image_token_type_idx=image_token_type_idx,
        )
        encoder: Any = self.encoder
        encoder.refuse_watched_call(runs_packed(states, None, (), {}), kwargs)
        stream = encoder.run_trimmed(Stream.pack(states, mask != 0, first=text_length))
        padded = unpack_stream(stream.replace(normalize(self.layernorm, stream.values)))
        pooled = None if self.pooler is None else self.pooler(padded)
        output = BaseModelOutputWithPooling(last_hidden_state=padded, pooler_output=pooled)
        return_dict = kwargs.get("return_dict")
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


register(
    Adapter(
        "ViLT",
        ViltModel,
        {ViltEncoder: PackedViltEncoder, ViltLayer: PackedViltLayer, ViltEmbeddings: PackedViltEmbeddings},
        trimmed_classes={ViltModel: TrimmedViltModel},
    )
)
