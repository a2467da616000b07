"""The method from files to files: teach a dual encoder, and measure one."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
)
from transformers.trainer_utils import get_last_checkpoint

import vleff
from vleff.data.preprocessor import MAX_LENGTH
from vleff.dide.dual_encoder import DualEncoder
from vleff.dide.examples import Example, ExampleCollator
from vleff.dide.losses import DistillationConfig
from vleff.dide.preprocessing import Preprocessor
from vleff.dide.teacher import FusionTeacher
from vleff.dide.training import DistillationTrainer, paper_arguments
from vleff.training.checkpoints import check_settings
from vleff.training.evaluating import evaluating

# ViLT has no class of its own for entailment: its answers are classes, too
TEACHERS: dict[str, type[PreTrainedModel]] = {
    "vqa": ViltForQuestionAnswering,
    "snli-ve": ViltForQuestionAnswering,
    "nlvr2": ViltForImagesAndTextClassification,
    "retrieval": ViltForImageAndTextRetrieval,
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a dual encoder is taught; None stands for the paper's value.

    Attributes:
        task: "vqa", "nlvr2", "snli-ve" or "retrieval".
        epochs, batch, learning_rate: of `paper_arguments`.
        soft_weight, attention_weight, hard_label_weight: of `DistillationConfig`.
        max_length: of texts, in tokens.
        save_steps: steps between two checkpoints.
        seed: of the head's first weights, the order of examples and dropout.
    """

    task: str
    epochs: float | None = None
    batch: int | None = None
    learning_rate: float | None = None
    soft_weight: float = 1.0
    attention_weight: float = 1.0
    hard_label_weight: float = 0.0
    max_length: int = MAX_LENGTH
    save_steps: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Scores:
    """How good a dual encoder is.

    Attributes:
        examples: on how many it was measured.
        values: "accuracy" in percent; of retrieval "text to image R@1" and so on.
    """

    examples: int
    values: dict[str, float]

    def __str__(self) -> str:
        parts = [f"{name} {value:.1f}" for name, value in self.values.items()]
        return f"{', '.join(parts)}, {self.examples} examples"


class _Examples(Dataset):
    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Example:
        return self.examples[number]


def train(
    teacher: str | Path,
    examples: Sequence[Example],
    folder: str | Path,
    settings: TrainingSettings,
    student: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Teaches a dual encoder what a fusion encoder knows, and saves it with its preprocessor.

    Checkpoints go to `folder / "training"`; a call with the same folder and settings goes on from the last.

    Args:
        teacher: a checkpoint of ViLT, fine-tuned for the task, with its preprocessor.
        examples: the labels count only if `hard_label_weight` does.
        student: the fusion checkpoint that both towers begin with; the teacher's if None.
        quiet: without a progress bar.

    Returns:
        `folder`.

    Raises:
        FileExistsError: the folder holds a dual encoder already.
        ValueError: the folder is that of another training.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a dual encoder already")
    check_settings(folder, {"teacher": str(teacher), "student": str(student or teacher), **asdict(settings)})
    teacher_class: Any = TEACHERS[settings.task]
    fusion = teacher_class.from_pretrained(teacher)
    preprocessor = Preprocessor.from_pretrained(teacher, settings.max_length)
    first = fusion if student is None else teacher_class.from_pretrained(student)
    names = {} if settings.task == "retrieval" else {"id2label": fusion.config.id2label}
    torch.manual_seed(settings.seed)
    model = DualEncoder.from_fusion(first, settings.task, **names)
    given = {
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch,
        "learning_rate": settings.learning_rate,
    }
    arguments = paper_arguments(
        settings.task,
        str(folder / "training"),
        seed=settings.seed,
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=10,
        disable_tqdm=quiet,
        **{name: value for name, value in given.items() if value is not None},
    )
    trainer = DistillationTrainer(
        vleff.accelerate(model),
        arguments,
        FusionTeacher(vleff.accelerate(fusion)),
        DistillationConfig(settings.soft_weight, settings.attention_weight, settings.hard_label_weight),
        train_dataset=_Examples(examples),
        data_collator=ExampleCollator(preprocessor, settings.task, _classes(model)),
    )
    last = get_last_checkpoint(str(folder / "training")) if (folder / "training").is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    preprocessor.save_pretrained(folder)
    vleff.restore(model).save_pretrained(folder)
    return folder


def evaluate(
    model: DualEncoder, preprocessor: Preprocessor, examples: Sequence[Example], batch: int = 32, quiet: bool = False
) -> Scores:
    """Accuracy of a dual encoder; of retrieval the recalls at 1 and 10 in both directions over all examples.

    Args:
        model: best accelerated.
        batch: examples at a time.
        quiet: without a progress bar.

    Raises:
        ValueError: an example has no label, or is of another task.
    """
    task = model.config.task
    collate = ExampleCollator(preprocessor, task, _classes(model))
    texts, images, labels, right = [], [], [], 0.0
    steps = math.ceil(len(examples) / batch)
    with evaluating(model):
        for step in track(range(steps), "evaluating", transient=True, disable=quiet):
            some = examples[step * batch : (step + 1) * batch]
            inputs = {name: value.to(model.device) for name, value in collate(some).items()}
            own = inputs.pop("labels", None)
            if own is None:
                raise ValueError(f"evaluate: expected examples with labels, got {some[0]!r}")
            output = model(**inputs)
            assert output.logits is not None and output.text is not None and output.image is not None
            if task == "retrieval":
                texts.append(output.text)
                images.append(output.image)
                labels.append(collate.labels(some))
                continue
            chosen = output.logits.argmax(-1)
            score = own.gather(1, chosen[:, None]).sum() if own.dim() == 2 else (chosen == own).sum()
            right += float(score)
        if task != "retrieval":
            return Scores(len(examples), {"accuracy": 100 * right / len(examples)})
        scores = torch.cat(texts) @ torch.cat(images).mT
    return Scores(len(examples), recalls(scores.cpu(), torch.cat(labels)))


def recalls(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """How often, in percent, one of the k best scores is a right pair, both ways.

    Args:
        scores: [texts, images].
        labels: int64 [texts], what each text and the image at the same place are about.
    """
    values = {}
    for name, table in (("text to image", scores), ("image to text", scores.mT)):
        order = table.argsort(dim=1, descending=True, stable=True)
        right = labels[order] == labels[:, None]
        for k in (1, 10):
            values[f"{name} R@{k}"] = 100 * float(right[:, :k].any(1).float().mean())
    return values


def _classes(model: DualEncoder) -> dict[str, int]:
    names: Any = model.config.id2label or {}
    return {name: int(number) for number, name in names.items()}
