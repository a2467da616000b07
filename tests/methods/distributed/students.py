"""A small student of each method with its training loss, for runs in several processes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from methods.dide import small_models
from methods.lottery.families import bert
from methods.smarttrim.families import trimmed
from methods.test_composition import sparse
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViltForQuestionAnswering

import vleff
from vleff import dide, lottery, smarttrim

STEPS = 6
Inputs = dict[str, Tensor]


@dataclass
class Student:
    """A model, a batch of 8, its loss, and its Trainer.

    Attributes:
        loss: loss(model, inputs, step)
        trainer: trainer(arguments, data set), of a Trainer for `model`
        layers: what fully_shard takes one by one.
    """

    model: Any
    inputs: Inputs
    loss: Callable[[Any, Inputs, int], Tensor]
    trainer: Callable[[TrainingArguments, Dataset], Trainer]
    layers: list[nn.Module]


class Samples(Dataset):
    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 8 * STEPS

    def __getitem__(self, number: int) -> Inputs:
        return {name: value[number % 8] for name, value in self.inputs.items()}


def twice(inputs: Inputs) -> Inputs:
    return {name: torch.cat([value, value.flip(0)]) for name, value in inputs.items()}


def smarttrim_student() -> Student:
    family = trimmed(ViltForQuestionAnswering)
    labels = torch.rand(family.outputs()["logits"].shape)

    def loss(model: Any, inputs: Inputs, step: int) -> Tensor:
        return smarttrim.training_loss(model, inputs, step, STEPS).loss

    def trainer(arguments: TrainingArguments, data: Dataset) -> Trainer:
        return smarttrim.SmartTrimTrainer(family.model, arguments, train_dataset=data)

    inputs = twice(family.case.inputs | {"labels": labels})
    return Student(family.model.train(), inputs, loss, trainer, list(family.model.vilt.encoder.layer))


def dide_student() -> Student:
    fusion = small_models.teacher("vqa")
    model = vleff.accelerate(dide.DualEncoder.from_fusion(fusion, "vqa", num_labels=small_models.ANSWERS))
    teacher = dide.FusionTeacher(vleff.accelerate(fusion))

    def loss(model: Any, inputs: Inputs, step: int) -> Tensor:
        return dide.distil(model, teacher, inputs, dide.DistillationConfig())[0].total

    def trainer(arguments: TrainingArguments, data: Dataset) -> Trainer:
        return dide.DistillationTrainer(model, arguments, teacher, train_dataset=data)

    inputs = twice(small_models.inputs("vqa") | {"labels": small_models.labels("vqa")})
    layers = [layer for tower in (model.text_model, model.image_model) for layer in layers_of(tower)]
    return Student(model.train(), inputs, loss, trainer, layers)


def lottery_student(extracted: bool = False) -> Student:
    """A reader that is pruned while it is trained, or a subnetwork of it."""
    model = bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if extracted:
        sparse(model)
    vleff.accelerate(model)

    def loss(model: Any, inputs: Inputs, step: int) -> Tensor:
        return model(**inputs).loss

    def trainer(arguments: TrainingArguments, data: Dataset) -> Trainer:
        pruner = lottery.GradualPruner(model, lottery.LotteryConfig(sparsity=0.6, end_step=5, interval=1))
        return Trainer(model, arguments, train_dataset=data, callbacks=[lottery.PruningCallback(pruner)])

    places = torch.randint(0, 12, (8,))
    mask = (torch.arange(20) < torch.tensor([20, 12, 17, 20, 15, 13, 20, 19])[:, None]).long()
    inputs = {"input_ids": torch.randint(3, 99, (8, 20)), "attention_mask": mask}
    inputs |= {"start_positions": places, "end_positions": places}
    return Student(model.train(), inputs, loss, trainer, list(model.bert.encoder.layer))


STUDENTS: dict[str, Callable[[], Student]] = {
    "smarttrim": smarttrim_student,
    "dide": dide_student,
    "lottery": lottery_student,
    "subnetwork": lambda: lottery_student(extracted=True),
}
TRAINED = ("smarttrim", "dide", "lottery")  # by their Trainers
STEPPED = ("smarttrim", "dide", "subnetwork")  # by a loop of one's own


def layers_of(tower: nn.Module) -> list[nn.Module]:
    """The repeated layers: the entries of the longest list of modules."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len))


def make(method: str) -> Student:
    torch.manual_seed(0)
    return STUDENTS[method]()


def trainer_for(method: str, folder: Path, batch: int, callbacks: list[TrainerCallback] | None = None) -> Trainer:
    """A Trainer of STEPS steps that saves after every second one."""
    student = make(method)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=batch,
        learning_rate=1e-3,
        optim="sgd",
        lr_scheduler_type="constant",
        save_steps=2,
        logging_steps=1,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = student.trainer(arguments, Samples(student.inputs))
    for callback in callbacks or []:
        trainer.add_callback(callback)
    return trainer
