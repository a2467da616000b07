"""ViLT: one stream of text tokens and image patches, in pre-norm layers with attention of their own."""

from typing import Any

from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vilt.modeling_vilt import ViltEmbeddings, ViltEncoder, ViltLayer, ViltModel

from vleff.models.encoder import PackedEncoder
from vleff.models.layer import AttentionParts, FeedForwardParts, LayerParts, PreNormLayer
from vleff.models.registry import Adapter, register
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


class PackedViltEmbeddings(ViltEmbeddings):
    """The same patches in the same random order under the same seed, without loops over patches."""

    def visual_embed(self, pixel_values: Any, pixel_mask: Any, max_image_length: int = 200) -> tuple[Any, Any, Any]:
        patches = draw_patches(pixel_mask, self.config.patch_size, max_image_length)
        return embed_patches(self, pixel_values, pixel_mask, patches)


register(
    Adapter(
        "ViLT",
        ViltModel,
        {ViltEncoder: PackedViltEncoder, ViltLayer: PackedViltLayer, ViltEmbeddings: PackedViltEmbeddings},
    )
)
