"""DualEncoder: a text tower and an image tower that never see each other, and a shallow head over their outputs."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel, ViltConfig, ViltModel, ViltPreTrainedModel
from transformers.utils import ModelOutput

from vleff.dide.config import DualEncoderConfig
from vleff.dide.heads import ClassificationHead, PairOfImagesHead, RetrievalHead
from vleff.models.vilt_towers import ViltImageModel, ViltTextModel
from vleff.training.checkpoints import reading


@dataclass
class DualEncoderOutput(ModelOutput):
    """What a DualEncoder returns.

    Attributes:
        loss: scalar, where labels were given: that of the hard labels.
        logits: [batch, labels]; of retrieval the scores [texts, images].
        text: representations [texts, width].
        image: representations [images, width], of two images a text [batch, 2, width].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    text: Tensor | None = None
    image: Tensor | None = None


class DualEncoder(PreTrainedModel):
    """The student of DiDE (arXiv 2112.08723, section 2.1).

    `encode_text` and `encode_image` make representations, which may be stored; `score` compares them. `forward` does
    both at once. `vleff.accelerate` makes both towers and the head run packed and fused.

    Attributes:
        text_model, image_model: the towers.
        head: as the task says.
    """

    config_class = DualEncoderConfig
    config: DualEncoderConfig
    base_model_prefix = "dual_encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        text, image = config.text_config, config.image_config
        self.text_model = _tower(text, ViltTextModel, config.text_class)
        self.image_model = _tower(image, ViltImageModel, config.image_class)
        width, is_retrieval = config.width, config.task == "retrieval"
        labels: Any = config.num_labels
        assert width is not None
        self.text_projection = _projection(text.hidden_size, width, is_retrieval)
        self.image_projection = _projection(image.hidden_size, width, is_retrieval)
        self.head: Any
        if is_retrieval:
            self.head = RetrievalHead(config.temperature)
        elif config.task == "nlvr2":
            self.head = PairOfImagesHead(width, labels)
        else:
            self.head = ClassificationHead(width, labels)
        self.post_init()

    @classmethod
    def from_fusion(cls, fusion: ViltPreTrainedModel, task: str, **config: Any) -> "DualEncoder":
        """A student whose towers both begin with the weights of a fusion encoder; its head begins at random.

        Args:
            fusion: a ViltModel, or one with any head; the student has as many classes as a classifier on it.
            task: of `DualEncoderConfig`, as are further arguments.
        """
        if task != "retrieval" and hasattr(fusion, "classifier"):
            config.setdefault("num_labels", fusion.config.num_labels)
        base: Any = fusion if isinstance(fusion, ViltModel) else fusion.vilt
        return cls.from_towers(ViltTextModel.from_fusion(base), ViltImageModel.from_fusion(base), task, **config)

    @classmethod
    def from_towers(
        cls, text_model: PreTrainedModel, image_model: PreTrainedModel, task: str, **config: Any
    ) -> "DualEncoder":
        """A dual encoder of two encoders of transformers, whose weights are copied; its head begins at random.

        Args:
            text_model: takes input_ids and attention_mask: CLIP's or SigLIP's text model, BERT, ...
            image_model: takes pixel_values: CLIP's or SigLIP's vision model, ViT, ...
            task: of `DualEncoderConfig`, as are further arguments.

        Raises:
            TypeError: a tower's config stands for another class of encoders.
        """
        text, image = copy.deepcopy(text_model.config), copy.deepcopy(image_model.config)
        classes: dict[str, Any] = {"text_class": _class_name(text_model), "image_class": _class_name(image_model)}
        model = cls(DualEncoderConfig(text_config=text, image_config=image, task=task, **classes, **config))
        for name, tower in (("text_model", text_model), ("image_model", image_model)):
            own = getattr(model, name)
            if type(own) is not type(tower):
                raise TypeError(
                    f"argument '{name}': expected the encoder that its config stands for, {type(own).__name__}, got "
                    f"{type(tower).__name__}"
                )
            own.load_state_dict(tower.state_dict())
        nn.Module.to(model, dtype=text_model.dtype)
        return model.train(text_model.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> "DualEncoder":
        """As of PreTrainedModel.

        Raises:
            OSError: there is no such checkpoint.
            ValueError: it is damaged, or none of a dual encoder.
        """
        with reading(Path(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **options)

    def encode_text(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor
    ) -> Tensor:
        """The representations of texts.

        Args:
            input_ids: int64 [texts, length].
            attention_mask: [texts, length], zero at padding; None without any.
            inputs: what else the tower takes.

        Returns:
            [texts, width]; for retrieval of length 1.
        """
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        pooled = _pooled(output, self.config.text_pooling, attention_mask)
        return self._represent(self.text_projection, pooled)

    def encode_image(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """The representations of images.

        Args:
            pixel_values: [images, channels, height, width].
            inputs: what else the tower takes; `pixel_mask` [images, height, width], for example.

        Returns:
            [images, width]; for retrieval of length 1.
        """
        if pixel_values is not None:
            inputs = {"pixel_values": pixel_values, **inputs}
        pooled = _pooled(self.image_model(**inputs), self.config.image_pooling, None)
        return self._represent(self.image_projection, pooled)

    def score(self, text: Tensor, *images: Tensor) -> Tensor:
        """Compares representations, pair by pair or, by broadcasting, in all combinations.

        Args:
            text: [..., width].
            images: [..., width]; two of them where the task has two images a text.

        Returns:
            logits [..., labels]; of retrieval [...].

        Raises:
            ValueError: the task takes another number of images.
        """
        if len(images) != self.head.images:
            raise ValueError(f"argument 'images': expected {self.head.images} of {self.config.task}, got {len(images)}")
        return self.head(text, *images)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        patches: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> DualEncoderOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds: of the text tower.
            pixel_values, pixel_mask, image_embeds, patches: of the image tower; with two images a text they have a
                second dimension of size 2.
            labels: int64 [batch]; of answers float [batch, labels], the share of each; of retrieval int64 [batch],
                what a pair is about.
        """
        texts = _given(token_type_ids=token_type_ids, inputs_embeds=inputs_embeds)
        images = _given(pixel_values=pixel_values, pixel_mask=pixel_mask, image_embeds=image_embeds, patches=patches)
        text = self.encode_text(input_ids, attention_mask, **texts)
        if self.head.images == 1:
            image = self.encode_image(**images)
            is_retrieval = isinstance(self.head, RetrievalHead)
            logits = self.head.all_pairs(text, image) if is_retrieval else self.head(text, image)
        else:
            both = [self.encode_image(**{name: x[:, number] for name, x in images.items()}) for number in range(2)]
            logits, image = self.head(text, *both), torch.stack(both, 1)
        loss = None if labels is None else self.head.loss(logits.float(), labels)
        return DualEncoderOutput(loss=loss, logits=logits, text=text, image=image)

    def _represent(self, projection: nn.Module, pooled: Tensor) -> Tensor:
        projected = projection(pooled)
        return functional.normalize(projected, dim=-1) if isinstance(self.head, RetrievalHead) else projected

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RetrievalHead):
            nn.init.constant_(module.log_scale, -math.log(self.config.temperature))


def _given(**inputs: Tensor | None) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if value is not None}


def _tower(config: Any, vilt_tower: type[PreTrainedModel], class_name: str | None) -> PreTrainedModel:
    if class_name is not None:
        return getattr(transformers, class_name)(config)
    return vilt_tower(config) if isinstance(config, ViltConfig) else AutoModel.from_config(config)


def _class_name(tower: PreTrainedModel) -> str | None:
    """The name of a tower's class, None if its config stands for it."""
    known = isinstance(tower.config, (ViltConfig, *MODEL_MAPPING.keys()))
    return None if known else type(tower).__name__


def _projection(inputs: int, width: int, always: bool) -> nn.Module:
    return nn.Linear(inputs, width, bias=not always) if always or inputs != width else nn.Identity()


def _pooled(output: Any, pooling: str, mask: Tensor | None) -> Tensor:
    """[batch, d] of a tower's output"""
    if pooling == "pooler":
        if output.pooler_output is None:
            raise ValueError("pooling: expected a tower with a pooler, got one without: take 'first' or 'mean'")
        return output.pooler_output
    states = output.last_hidden_state
    if pooling == "first":
        return states[:, 0]
    if mask is None:
        return states.mean(1)
    mask = mask[:, :, None].to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)
