"""METER with the heads of its four tasks (Dou et al. 2022, section 4)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from vleff.models.meter import MeterConfig, MeterModel, MeterPreTrainedModel


def _classifier(width: int, hidden: int, labels: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, labels))


class _MeterWithHead(MeterPreTrainedModel):
    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        self.meter = MeterModel(config)
        self.classifier = self.head(config)
        self.post_init()

    def head(self, config: MeterConfig) -> nn.Module:
        return _classifier(2 * config.hidden_size, 2 * config.hidden_size, config.num_labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of MeterModel; `labels` ask for the loss.

        Returns:
            SequenceClassifierOutput with logits [batch, labels], or a tuple where `return_dict` is False.
        """
        pooled = self.pooled(input_ids, attention_mask, pixel_values, **kwargs)
        logits = self.classifier(pooled)
        loss = None if labels is None else self.loss(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def pooled(self, input_ids: Any, attention_mask: Any, pixel_values: Any, **kwargs: Any) -> torch.Tensor:
        """[batch, width of the head's input]"""
        return self.meter(input_ids, attention_mask, pixel_values, return_dict=True, **kwargs).pooler_output


class MeterForQuestionAnswering(_MeterWithHead):
    """Visual question answering: config.num_labels answers (3,129 for VQAv2).

    Labels: float [batch, answers], the share of annotators that gave each answer; the loss is binary
    cross-entropy, summed over the answers and averaged over the batch.
    """

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * labels.shape[1]


class MeterForVisualEntailment(_MeterWithHead):
    """Visual entailment (SNLI-VE): config.num_labels = 3. Labels: int64 [batch]."""


class MeterForNLVR2(_MeterWithHead):
    """Two images and a statement about them, true or false: config.num_labels = 2.

    `pixel_values` are [batch, 2, 3, height, width] (or `image_embeds` [batch, 2, 1 + patches, d]); each image is
    fused with the text by itself, the second under a modality embedding of its own. Labels: int64 [batch].
    """

    def head(self, config: MeterConfig) -> nn.Module:
        return _classifier(4 * config.hidden_size, 2 * config.hidden_size, config.num_labels)

    def pooled(
        self, input_ids: Any, attention_mask: Any, pixel_values: Any, image_embeds: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """[batch, 4 * hidden_size]"""
        both = pixel_values if image_embeds is None else image_embeds
        if both is None or both.shape[1] != 2:
            shape = None if both is None else list(both.shape)
            raise ValueError(f"pixel_values: expected two images a text, [batch, 2, ...], got {shape}")
        name = "pixel_values" if image_embeds is None else "image_embeds"
        return torch.cat(
            [
                self.meter(
                    input_ids,
                    attention_mask,
                    image_token_type=image + 1,
                    return_dict=True,
                    **{name: both[:, image]},
                    **kwargs,
                ).pooler_output
                for image in range(2)
            ],
            -1,
        )


class MeterForImageAndTextRetrieval(_MeterWithHead):
    """How well each image and text of the batch fit together: logits [batch, 1].

    Labels: int64 [groups]. The batch then holds as many groups of equal size one after the other; a label says
    which pair of its group belongs together, the others are negatives (cross-entropy within groups).
    """

    def head(self, config: MeterConfig) -> nn.Module:
        return nn.Linear(2 * config.hidden_size, 1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits.view(labels.shape[0], -1), labels)
