"""Fine-tuning distillation: one step of it, and a Trainer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from vleff.dide.dual_encoder import DualEncoder, DualEncoderOutput
from vleff.dide.losses import CrossModalAttention, DistillationConfig, DistillationLosses, distillation_loss
from vleff.dide.teacher import FusionTeacher
from vleff.models.queries_and_keys import record_queries_and_keys
from vleff.models.vilt_towers import ViltImageModel

# epochs and batch size of the paper's fine-tuning, and by how much the classifier learns faster
_SCHEDULES = {"nlvr2": (20, 128, 1.0), "snli-ve": (10, 256, 1.0), "vqa": (10, 256, 10.0)}


def paper_arguments(task: str, output_dir: str, **others: Any) -> TrainingArguments:
    """The settings of the authors' fine-tuning, for one device.

    AdamW (0.9, 0.98), eps 1e-8, weight decay 0.01, learning rate 1e-4, 10 % warm-up, linear decay; NLVR2 20 epochs
    in batches of 128, SNLI-VE 10 in 256, VQA 10 in 256. Those of "retrieval" are SNLI-VE's (reconstruction).

    Args:
        task: of the student.
        output_dir: for checkpoints.
        others: arguments that differ.
    """
    epochs, batch, _ = _SCHEDULES.get(task, _SCHEDULES["snli-ve"])
    arguments: dict[str, Any] = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-4,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=output_dir, **(arguments | others))


def distil(
    model: nn.Module, teacher: FusionTeacher | None, inputs: Mapping[str, Tensor], config: DistillationConfig
) -> tuple[DistillationLosses, DualEncoderOutput]:
    """One step: student and teacher read the same batch, with the same patches.

    Args:
        model: a DualEncoder, possibly wrapped for several processes.
        teacher: None if only hard labels or cached logits count.
        inputs: arguments of a DualEncoder; `teacher_logits`, [batch, classes] or [texts, images], spare the teacher
            its answers, and, without attention distillation, the whole pass.
    """
    given = dict(inputs)
    cached, labels = given.pop("teacher_logits", None), given.pop("labels", None)
    student_inputs = dict(given)
    if config.hard_label_weight and labels is not None:
        student_inputs["labels"] = labels
    student: Any = getattr(model, "module", model)
    task, logits, attention = student.config.task, cached, None
    if teacher is None or not (config.attention_weight or (config.soft_weight and cached is None)):
        outputs = model(**student_inputs)
        return distillation_loss(task, outputs, cached, None, config), outputs
    teacher_inputs: Mapping[str, Tensor] = given
    if config.attention_weight or teacher.shows_attention:
        shared = teacher.share(given)
        teacher_inputs = shared.teacher
        if shared.patches is not None and isinstance(student.image_model, ViltImageModel):
            student_inputs["patches"] = shared.patches
    if config.attention_weight:
        with record_queries_and_keys(student.text_model) as text, record_queries_and_keys(student.image_model) as image:
            outputs = model(**student_inputs)
        own_logits, recording = teacher.show(shared)
        logits = own_logits if cached is None else cached
        attention = CrossModalAttention(recording, text, image, shared.text_mask, shared.image_masks)
    else:
        outputs = model(**student_inputs)
    if cached is None and config.soft_weight and task == "retrieval":
        logits = teacher.rank(teacher_inputs, outputs.logits, config.candidates)
    elif logits is None:
        logits = teacher.answer(teacher_inputs)
    return distillation_loss(task, outputs, logits, attention, config), outputs


class DistillationTrainer(Trainer):
    """transformers' Trainer for a DualEncoder that learns from a teacher.

    Args:
        model: the DualEncoder.
        args: as of Trainer; `paper_arguments` makes the paper's.
        teacher: None to learn from hard labels or from `teacher_logits` in the batches.
        distillation: what counts; the paper's weights if None.
        head_factor: by how much the head learns faster than the towers; 10 for "vqa", as in the paper, and 1 for
            other tasks if None.
        others: as of Trainer.
    """

    def __init__(
        self,
        model: DualEncoder,
        args: TrainingArguments,
        teacher: FusionTeacher | None,
        distillation: DistillationConfig | None = None,
        head_factor: float | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, args, **others)
        self.teacher = None if teacher is None else teacher.to(args.device)
        self.distillation = distillation or DistillationConfig()
        task = model.config.task
        self.head_factor = _SCHEDULES.get(task, (0, 0, 1.0))[2] if head_factor is None else head_factor
        self.loss_is_scaled_for_ga = False
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As of Trainer: the weighed sum of the parts, which are logged one by one."""
        losses, outputs = self.step(model, inputs)
        if model.training:
            self._steps += 1
            for name, part in losses.parts.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(part)) + part.detach()
        return (losses.total, outputs) if return_outputs else losses.total

    def step(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[DistillationLosses, Any]:
        """The losses and the outputs of one batch."""
        return distil(model, self.teacher, inputs, self.distillation)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As of Trainer, with the means of the parts since the last time."""
        if "loss" in logs and self._steps:
            logs |= {f"{name}_loss": float(total) / self._steps for name, total in self._sums.items()}
            self._sums, self._steps = {}, 0
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As of Trainer; the head has groups of its own where it learns faster."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.head_factor != 1:
            student: Any = self.model
            head = {id(parameter) for parameter in student.head.parameters()}
            for group in list(optimizer.param_groups):
                faster = [parameter for parameter in group["params"] if id(parameter) in head]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
                rate = group["lr"] * self.head_factor
                optimizer.add_param_group({**group, "params": faster, "lr": rate})
        return optimizer
