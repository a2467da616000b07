"""ViLT for one modality alone: the two towers of a dual encoder that a fusion encoder's checkpoint initialises.

Both take the names of ViltModel's parameters, so that a checkpoint of it loads into either. transformers lacks them.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel, ViltPreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vilt.modeling_vilt import (
    TextEmbeddings,
    ViltEncoder,
    ViltLayer,
    ViltPatchEmbeddings,
    ViltPooler,
)

from vleff.models.encoder import self_attending_stream
from vleff.models.registry import Adapter, register
from vleff.models.trimming import StreamSpec
from vleff.models.vilt import PackedViltEncoder, PackedViltLayer
from vleff.models.vilt_patches import all_patches, embed_patches

Tower = TypeVar("Tower", bound="ViltTower")


class ViltTextEmbeddings(nn.Module):
    """The part of ViltEmbeddings that embeds text."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.text_embeddings = TextEmbeddings(config)
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)

    def forward(self, input_ids: Any = None, token_type_ids: Any = None, inputs_embeds: Any = None) -> Tensor:
        """-> [batch, length, d]"""
        embedded = self.text_embeddings(input_ids, token_type_ids, inputs_embeds=inputs_embeds)
        return embedded + self.token_type_embeddings.weight[0]


class ViltImageEmbeddings(nn.Module):
    """The part of ViltEmbeddings that embeds images."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = ViltPatchEmbeddings(config)
        patches = self.patch_embeddings.num_patches
        self.position_embeddings = nn.Parameter(torch.zeros(1, patches + 1, config.hidden_size))
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None, patches: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> [batch, 1 + patches, d] and mask int64 [batch, 1 + patches]"""
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
        if patches is None:
            patches = all_patches(pixel_mask, self.config.patch_size)
        embedded, mask, _ = embed_patches(self, pixel_values, pixel_mask, patches)
        return self.as_image(embedded), mask

    def as_image(self, embedded: Tensor) -> Tensor:
        """Adds the embedding of the modality: 1 stands for an image; text has 0."""
        return embedded + self.token_type_embeddings.weight[1]


class ViltTower(ViltPreTrainedModel):
    """What the towers share: ViLT's layers, final LayerNorm and tanh pooler over token 0."""

    embeddings: Any

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.encoder = ViltEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViltPooler(config)

    @classmethod
    def from_fusion(cls: type[Tower], fusion: ViltModel) -> Tower:
        """A tower with a copy of the weights of a fusion encoder."""
        tower = cls(copy.deepcopy(fusion.config))
        nn.Module.to(tower, dtype=fusion.dtype)
        weights = fusion.state_dict()
        own = tower.state_dict()
        tower.load_state_dict({name: weights.get(name, own[name]) for name in own})
        return tower.train(fusion.training)

    def _encode(self, embedded: Tensor, mask: Tensor | None) -> BaseModelOutputWithPooling:
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embedded, attention_mask=mask)
        states = self.layernorm(self.encoder(embedded, attention_mask=mask).last_hidden_state)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.pooler(states))


class ViltTextModel(ViltTower):
    """ViLT's layers over text alone."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.embeddings = ViltTextEmbeddings(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.text_embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: int64 [batch, length]; or `inputs_embeds` [batch, length, d].
            attention_mask: [batch, length], zero at padding; None without any.
            token_type_ids: int64 [batch, length]; zeros if None.
        """
        return self._encode(self.embeddings(input_ids, token_type_ids, inputs_embeds), attention_mask)


class ViltImageModel(ViltTower):
    """ViLT's layers over an image alone."""

    main_input_name = "pixel_values"

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.embeddings = ViltImageEmbeddings(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        patches: Tensor | None = None,
        image_embeds: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: [batch, channels, height, width]; or `image_embeds` [batch, tokens, d], as ViltModel takes
                them: with their positions, without the embedding of the modality.
            pixel_mask: [batch, height, width], 1 within each image, which starts at the top left; None if images
                fill theirs. With `image_embeds` the mask of the tokens, [batch, ...], flattened.
            patches: int64 [batch, patches], numbers of the patches to take, as `draw_patches` returns them. All of
                them in order if None: unlike ViltModel, the same image has the same output every time.
        """
        if image_embeds is None:
            assert pixel_values is not None
            return self._encode(*self.embeddings(pixel_values, pixel_mask, patches))
        mask = None if pixel_mask is None else pixel_mask.flatten(1)
        return self._encode(self.embeddings.as_image(image_embeds), mask)


class PackedTowerEncoder(PackedViltEncoder):
    def streams(self) -> tuple[StreamSpec, ...]:
        return (self_attending_stream("tokens", self.packed_layers()),)


for _name, _model_class in (("ViLT text tower", ViltTextModel), ("ViLT image tower", ViltImageModel)):
    register(Adapter(_name, _model_class, {ViltEncoder: PackedTowerEncoder, ViltLayer: PackedViltLayer}))
