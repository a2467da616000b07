"""The losses of distillation: soft labels of a teacher, cross-modal attention, hard labels."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vleff.dide.config import TASKS
from vleff.models.queries_and_keys import Recording
from vleff.nn.attention_distillation import CrossModalAttentionDistillationLoss


@dataclass(frozen=True)
class DistillationConfig:
    """How much each part of the loss counts (arXiv 2112.08723, section 2.3; the weights are those of its code).

    Attributes:
        soft_weight: of the teacher's logits.
        attention_weight: of the cross-modal attention of the last layers, all heads.
        hard_label_weight: of the labels.
        average_padded: whether padded text counts as queries in the mean of the attention loss, as in the authors'
            code. Teacher and student must then not be accelerated.
        candidates: of retrieval, how many images the teacher ranks for a text, and texts for an image: the right
            one, and those of the batch that the student finds most similar (reconstruction).

    Raises:
        ValueError: a value is out of its range.
    """

    soft_weight: float = 1.0
    attention_weight: float = 1.0
    hard_label_weight: float = 0.0
    average_padded: bool = False
    candidates: int = 8

    def __post_init__(self) -> None:
        for name in ("soft_weight", "attention_weight", "hard_label_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"argument '{name}': expected at least 0, got {getattr(self, name)}")
        if self.candidates < 2:
            raise ValueError(f"argument 'candidates': expected at least 2, got {self.candidates}")


@dataclass
class CrossModalAttention:
    """The recorded queries and keys of a teacher's last layer and of a student's, over the same tokens.

    Attributes:
        teacher: of the fusion encoder, whose sequence is text, then image; a call for each image of a text.
        student_text: of the text tower, one call.
        student_image: of the image tower, a call for each image of a text.
        text_mask: bool [batch, text length].
        image_masks: for each image of a text, bool [batch, image tokens].
    """

    teacher: Recording
    student_text: Recording
    student_image: Recording
    text_mask: Tensor
    image_masks: list[Tensor]


@dataclass
class DistillationLosses:
    """The parts of a loss, before they are weighed; None where a part was left out.

    Attributes:
        total: what to minimise.
        parts: "soft", "attention", "hard".
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def distillation_loss(
    task: str,
    student: Any,
    teacher_logits: Tensor | None,
    attention: CrossModalAttention | None = None,
    config: DistillationConfig | None = None,
) -> DistillationLosses:
    """The loss of fine-tuning distillation, for training loops of one's own.

    Args:
        task: of the student.
        student: a DualEncoderOutput; its loss, that of the hard labels, counts if `hard_label_weight` is not 0.
        teacher_logits: as the student's; of retrieval [texts, images], NaN where the teacher ranked no pair. None
            if soft labels are to be left out.
        attention: None if attention is to be left out.
        config: the paper's if None.

    Raises:
        ValueError: nothing is left to learn from, or a shape does not fit.
    """
    config = config or DistillationConfig()
    parts = {}
    if config.soft_weight and teacher_logits is not None:
        parts["soft"] = soft_label_loss(task, student.logits, teacher_logits)
    if config.attention_weight and attention is not None:
        parts["attention"] = attention_loss(attention, config.average_padded)
    if config.hard_label_weight and student.loss is not None:
        parts["hard"] = student.loss
    if not parts:
        raise ValueError("distillation: expected a teacher's logits, its attention or labels, got none that counts")
    weights = {"soft": config.soft_weight, "attention": config.attention_weight, "hard": config.hard_label_weight}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return DistillationLosses(total, parts)


def soft_label_loss(task: str, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """How far a student's answers are from its teacher's.

    Answers of "vqa": binary cross entropy against the teacher's probabilities, times the number of answers. Classes:
    KL(teacher || student), averaged over the batch. "retrieval" (reconstruction): the same over the images of a text
    that the teacher ranked and over the texts of an image, averaged.

    Args:
        task: "vqa", "nlvr2", "snli-ve" or "retrieval".
        student_logits, teacher_logits: [batch, classes]; of retrieval [texts, images], where pairs that the teacher
            did not rank are NaN.

    Raises:
        ValueError: the shapes differ, or there is no such task.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"argument 'teacher_logits': expected the student's {list(student_logits.shape)}, got "
            f"{list(teacher_logits.shape)}"
        )
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    if task == "vqa":
        loss = functional.binary_cross_entropy_with_logits(student, teacher.sigmoid())
        return loss * student.shape[-1]
    if task in ("nlvr2", "snli-ve"):
        return _divergence(student, teacher)
    if task == "retrieval":
        ranked = ~teacher.isnan()
        both_ways = [
            _divergence(s.masked_fill(~known, -1e9), t.masked_fill(~known, -1e9))
            for s, t, known in ((student, teacher, ranked), (student.mT, teacher.mT, ranked.mT))
        ]
        return (both_ways[0] + both_ways[1]) / 2
    raise ValueError(f"argument 'task': expected one of {', '.join(TASKS)}, got {task!r}")


def attention_loss(attention: CrossModalAttention, average_padded: bool = False) -> Tensor:
    """The cross-modal attention distillation of the last layer; of two images a text the mean (reconstruction).

    Raises:
        ValueError: the student has other tokens than the teacher.
    """
    measure = CrossModalAttentionDistillationLoss(average_padded)
    text_mask, text_length = attention.text_mask, attention.text_mask.shape[1]
    _check_tokens("text", attention.student_text, 0, text_mask)
    student_text_q, student_text_k = attention.student_text.ragged(0, text_mask)
    losses = []
    for call, image_mask in enumerate(attention.image_masks):
        _check_tokens("image", attention.student_image, call, image_mask)
        student_image_q, student_image_k = attention.student_image.ragged(call, image_mask)
        joint = torch.cat([text_mask, image_mask], 1)
        # elsewhere than on the CPU `compact` keeps all rows, unless it is told how many stay
        on_cpu = student_text_q.values.device.type == "cpu"
        texts, images = (None if on_cpu else part.values.shape[0] for part in (student_text_q, student_image_q))
        by_modality = [
            (part.compact(part.positions < text_length, texts), part.compact(part.positions >= text_length, images))
            for part in attention.teacher.ragged(call, joint)
        ]
        (teacher_text_q, teacher_image_q), (teacher_text_k, teacher_image_k) = by_modality
        teacher_queries, student_queries = teacher_text_q.values, student_text_q.values
        if average_padded:
            teacher_queries = attention.teacher.padded_queries(call)[:, :text_length].flatten(0, 1)
            student_queries = attention.student_text.padded_queries(0).flatten(0, 1)
        losses.append(
            measure(
                (teacher_queries, teacher_text_k.values),
                (teacher_image_q.values, teacher_image_k.values),
                (student_queries, student_text_k.values),
                (student_image_q.values, student_image_k.values),
                student_text_k.offsets,
                student_image_k.offsets,
                text_length,
                image_mask.shape[1],
            )
        )
    return torch.stack(losses).mean()


def _check_tokens(modality: str, student: Recording, call: int, mask: Tensor) -> None:
    if not student.fits(call, mask):
        raise ValueError(
            f"attention distillation: expected a student with the {modality} tokens of its teacher, [batch, length] = "
            f"{list(mask.shape)}, got queries {list(student.queries[call].shape)}; a student of other tokens learns "
            "from soft labels alone: attention_weight=0"
        )


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) over the last dimension, averaged over the batch."""
    return functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
