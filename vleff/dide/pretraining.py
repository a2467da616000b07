"""Pre-training distillation: contrast, matching and masked words on image-text pairs, and a teacher's attention.

The paper (arXiv 2112.08723, section 2.4) trains with these three objectives, soft labels for the last two, and
cross-modal attention distillation. Everything else here is a reconstruction: how the student fuses a masked word with
the image, which pairs do not match, that the attention is that of the unmasked, matching pairs, and equal weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from vleff.dide.config import DualEncoderConfig
from vleff.dide.dual_encoder import DualEncoder
from vleff.dide.heads import RetrievalHead, ShallowInteraction
from vleff.dide.losses import CrossModalAttention, DistillationLosses, attention_loss
from vleff.dide.teacher import FusionTeacher
from vleff.dide.training import DistillationTrainer
from vleff.models.queries_and_keys import record_queries_and_keys
from vleff.models.vilt_pretraining import ViltForPreTraining


class PreTrainingHead(nn.Module):
    """The heads of the three objectives; `fusion` is the one that tasks with classes go on with."""

    images = 1

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        width: Any = config.width
        self.fusion = ShallowInteraction(width)
        self.matching = nn.Linear(width, 2)
        self.words = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, config.text_config.vocab_size)
        )
        self.text_contrast = nn.Linear(width, width, bias=False)
        self.image_contrast = nn.Linear(width, width, bias=False)
        self.contrast = RetrievalHead(config.temperature)


class DualEncoderForPreTraining(DualEncoder):
    """A dual encoder with the heads of pre-training.

    `DualEncoder.from_pretrained(folder, task=...)` goes on from what it saves: with its towers and its fusion.
    """

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        self.head = PreTrainingHead(config)
        self.post_init()

    def forward(  # type: ignore[override]
        self, texts: Mapping[str, Tensor], masked: Mapping[str, Tensor], words: Tensor, images: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            texts: arguments of the text tower, of `batch` texts.
            masked: the same with masked words.
            words: bool [batch, length], which ones are masked.
            images: arguments of the image tower, of `batch` images.

        Returns:
            contrast [texts, images], matching [texts, images, 2] and words [masked words, vocabulary].
        """
        text, image = self.encode_text(**texts), self.encode_image(**images)
        contrast = self.head.contrast.all_pairs(
            functional.normalize(self.head.text_contrast(text), dim=-1),
            functional.normalize(self.head.image_contrast(image), dim=-1),
        )
        matching = self.head.matching(self.head.fusion(text[:, None], image))
        states = self.text_projection(self.text_model(**masked).last_hidden_state[words])
        beside = image[:, None].expand(-1, words.shape[1], -1)[words]
        return contrast, matching, self.head.words(self.head.fusion(states, beside))


@dataclass(frozen=True)
class PreTrainingConfig:
    """How much each part of the loss counts.

    Attributes:
        contrast: hard labels: a text's own image among those of the batch, and the other way round.
        matching: the teacher's soft labels for the right pairs and for as many wrong ones.
        words: the teacher's soft labels for masked words.
        attention: cross-modal attention of the last layers.
    """

    contrast: float = 1.0
    matching: float = 1.0
    words: float = 1.0
    attention: float = 1.0


class PreTrainingCollator:
    """Makes a batch of pairs: texts, the same with masked words, and images.

    Args:
        tokenizer: with a mask token.
        image_processor: of transformers.
        max_length: of texts, in tokens.
        masked: the share of words that are masked.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_processor: Any, max_length: int = 40, masked: float = 0.15
    ) -> None:
        self.tokenizer, self.image_processor, self.max_length = tokenizer, image_processor, max_length
        self._mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=masked)

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """pairs with "text" and "image" -> input_ids, attention_mask, masked_ids, words and the processor's tensors"""
        texts = self.tokenizer(
            [pair["text"] for pair in pairs],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        special = texts["special_tokens_mask"].bool() | (texts["attention_mask"] == 0)
        masked, labels = self._mask.torch_mask_tokens(texts["input_ids"].clone(), special)
        images = self.image_processor([pair["image"] for pair in pairs], return_tensors="pt")
        return {
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
            "masked_ids": masked,
            "words": labels != -100,
            **images,
        }


def distil_pretraining(
    model: nn.Module, teacher: FusionTeacher, batch: Mapping[str, Tensor], config: PreTrainingConfig
) -> DistillationLosses:
    """One step of pre-training distillation.

    Args:
        model: a DualEncoderForPreTraining, possibly wrapped for several processes.
        teacher: of a ViltForPreTraining.
        batch: as `PreTrainingCollator` makes it.

    Raises:
        TypeError: the teacher is another model.
    """
    if not isinstance(teacher.model, ViltForPreTraining):
        raise TypeError(f"argument 'teacher': expected a ViltForPreTraining, got {type(teacher.model).__name__}")
    inputs = dict(batch)
    words, masked_ids = inputs.pop("words"), inputs.pop("masked_ids")
    shared = teacher.share(inputs)
    names = ("input_ids", "attention_mask", "token_type_ids", "inputs_embeds")
    texts = {name: inputs[name] for name in names if name in inputs}
    images = {name: value for name, value in inputs.items() if name not in names}
    if shared.patches is not None:
        images["patches"] = shared.patches
    student: Any = getattr(model, "module", model)
    with record_queries_and_keys(student.text_model) as text, record_queries_and_keys(student.image_model) as image:
        contrast, matching, word_logits = model(texts, texts | {"input_ids": masked_ids}, words, images)
    right, recording = teacher.show(shared)
    count = len(contrast)
    others = (torch.arange(count) + int(torch.randint(1, max(count, 2), ()))) % count
    others = others.to(contrast.device)
    own = torch.arange(count, device=others.device)
    wrong = teacher.answer(_with_images(shared.teacher, others))
    with torch.no_grad():
        masked = shared.teacher | {"input_ids": masked_ids}
        teacher_words = teacher.model(words=words, **masked).word_logits
    attention = CrossModalAttention(recording, text, image, shared.text_mask, shared.image_masks)
    parts = {
        "contrast": student.head.contrast.loss(contrast.float(), own),
        "matching": _soft(torch.cat([matching[own, own], matching[own, others]]), torch.cat([right, wrong])),
        "words": _soft(word_logits, teacher_words),
        "attention": attention_loss(attention),
    }
    total = torch.stack([getattr(config, name) * part for name, part in parts.items()]).sum()
    return DistillationLosses(total, parts)


class PreTrainingTrainer(DistillationTrainer):
    """transformers' Trainer for pre-training distillation.

    Args:
        model: the DualEncoderForPreTraining.
        args, teacher, others: as of DistillationTrainer; the collator is a `PreTrainingCollator`.
        weights: of the parts.
    """

    def __init__(
        self,
        model: DualEncoderForPreTraining,
        args: Any,
        teacher: FusionTeacher,
        weights: PreTrainingConfig | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, args, teacher, head_factor=1.0, **others)
        self.weights = weights or PreTrainingConfig()

    def step(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[DistillationLosses, Any]:
        """As of DistillationTrainer."""
        assert self.teacher is not None
        losses = distil_pretraining(model, self.teacher, inputs, self.weights)
        return losses, {"loss": losses.total}


def _with_images(inputs: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    return {name: value[images] if name in ("image_embeds", "pixel_mask") else value for name, value in inputs.items()}


def _soft(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), averaged over the rows."""
    if not len(student):
        return student.sum() * 0.0
    log_probabilities = student.float().log_softmax(-1)
    target = teacher.float().log_softmax(-1)
    return functional.kl_div(log_probabilities, target, reduction="batchmean", log_target=True)
