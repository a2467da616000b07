"""The method from files to files: train a model of visual question answering with trimmers, and load one."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, PreTrainedModel, ViltForQuestionAnswering
from transformers.utils import logging

from vleff.data.image_questions import ImageQuestion, ImageQuestionCollator, frequent_answers, load_image_questions
from vleff.dide import Preprocessor
from vleff.smarttrim.answering import AnsweringTraining, answer, train_trimmed
from vleff.smarttrim.attachment import attach
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.execution import trimmers_of
from vleff.smarttrim.pretrained import DESCRIPTION, from_pretrained, save_pretrained
from vleff.smarttrim.report import measure_gain
from vleff.training.checkpoints import check_settings

_EXPLAINED = 32  # questions
_MEASURED = 512  # questions of which a control arm's shares are


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained to trim.

    Attributes:
        flop_target: the share of multiply-adds to keep.
        mode: "masked" or "gathered", `SmartTrimConfig.training`.
        epochs: passes over the questions.
        batch, learning_rate, trimmer_learning_rate, save_steps, seed: of `AnsweringTraining`.
        bfloat16: of `train_trimmed`.
    """

    flop_target: float = 0.45
    mode: str = "masked"
    epochs: float = 3.0
    batch: int = 32
    learning_rate: float = 3e-5
    trimmer_learning_rate: float = 1e-3
    bfloat16: bool = False
    save_steps: int = 200
    seed: int = 0


class _Questions(Dataset):
    def __init__(self, questions: Sequence[ImageQuestion]) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, number: int) -> ImageQuestion:
        return self.questions[number]


def train(
    name: str | Path,
    questions: Sequence[ImageQuestion],
    folder: str | Path,
    settings: TrainingSettings,
    random_like: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Trains a ViLT and its trimmers on questions, and saves both with tokenizer and image processor.

    Checkpoints go to `folder / "training"`; a call with the same folder and settings goes on from the last.

    Args:
        name: a checkpoint of `ViltForQuestionAnswering`, or of a ViLT without such a head, which gets a new one for
            the answers in the questions, as does one that knows none of them.
        random_like: a trimmed model; then tokens and heads are dropped at random, as many as it drops: the control
            arm of a study.
        quiet: without a progress bar.

    Returns:
        `folder`.

    Raises:
        FileExistsError: the folder holds a trimmed model already.
        TypeError: the checkpoint is no ViLT.
        ValueError: no question has an answer, or the folder is that of another training.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a trimmed model already")
    known = [question for question in questions if question.answer is not None]
    if not known:
        raise ValueError("argument 'questions': expected some with answers, got none")
    torch.manual_seed(settings.seed)  # of a new head and of new trimmers
    preprocessor, model = Preprocessor.from_pretrained(name), _answerer(name, known)
    config = SmartTrimConfig(flop_target=settings.flop_target, training=settings.mode)
    control = None if random_like is None else str(random_like)
    check_settings(folder, {"model": str(name), "random_like": control, "questions": len(known), **asdict(settings)})
    if random_like is not None:
        config = replace(config, random_shares=_shares(random_like, known[:_MEASURED], quiet))
    model = attach(model, config)
    collate = ImageQuestionCollator(preprocessor, _answers_of(model))
    training = AnsweringTraining(
        steps=math.ceil(settings.epochs * len(known) / settings.batch),
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        trimmer_learning_rate=settings.trimmer_learning_rate,
        save_steps=settings.save_steps,
        seed=settings.seed,
    )
    data: Any = _Questions(known)
    train_trimmed(model, data, collate, training, folder / "training", bfloat16=settings.bfloat16, quiet=quiet)
    preprocessor.save_pretrained(folder)
    save_pretrained(model, folder)
    return folder


def load(folder: str | Path) -> tuple[PreTrainedModel, ImageQuestionCollator]:
    """A trimmed model in float32 with what makes its batches.

    Raises:
        FileNotFoundError: the folder holds no trimmed model.
        OSError, ValueError: it has no tokenizer or image processor.
        TypeError: the model does not answer questions about images.
    """
    with _quiet():
        model: Any = from_pretrained(folder).float()
    if not isinstance(model, ViltForQuestionAnswering):
        raise TypeError(f"{folder}: expected a ViltForQuestionAnswering, got {type(model).__name__}")
    return model, ImageQuestionCollator(Preprocessor.from_pretrained(folder), _answers_of(model))


def load_and_run(folder: str | Path, data: str | None) -> PreTrainedModel:
    """A trimmed model for `vleff.explain`.

    Args:
        data: of `load_image_questions`; the model answers the first of them, and its gain is measured. None to leave
            it as it was loaded.

    Raises:
        as of `load` and `load_image_questions`.
    """
    if data is None:
        with _quiet():
            return from_pretrained(folder)
    model, collate = load(folder)
    inputs = collate(load_image_questions(data, "validation")[:_EXPLAINED])
    del inputs["labels"]
    measure_gain(model, inputs)
    return model


def load_random(folder: str | Path) -> PreTrainedModel:
    """As `load`, for a model that trims at random.

    Raises:
        ValueError: it does not.
    """
    model, _ = load(folder)
    if trimmers_of(model)[0].execution.config.random_shares is None:
        raise ValueError(f"{folder}: expected a model of `vleff smarttrim train --random-like`, got one with trimmers")
    return model


def known_answers(questions: Sequence[ImageQuestion], model: PreTrainedModel) -> float:
    """The share of questions whose answer the model can give."""
    labels = _answers_of(model)
    return Counter(question.answer in labels for question in questions)[True] / max(len(questions), 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars of loading weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _answers_of(model: Any) -> dict[str, int]:
    return model.config.label2id


def _answerer(name: str | Path, questions: Sequence[ImageQuestion]) -> ViltForQuestionAnswering:
    config: Any = AutoConfig.from_pretrained(name)
    if config.model_type != "vilt":
        raise TypeError(f"{name}: expected a ViLT, got a model of type {config.model_type!r}")
    if any(question.answer in config.label2id for question in questions):
        return ViltForQuestionAnswering.from_pretrained(name)
    answers = frequent_answers(questions)
    return ViltForQuestionAnswering.from_pretrained(
        name,
        id2label=dict(enumerate(answers)),
        label2id={answer: number for number, answer in enumerate(answers)},
        ignore_mismatched_sizes=True,
    )


def _shares(folder: str | Path, questions: Sequence[ImageQuestion], quiet: bool) -> dict[str, dict[str, list[float]]]:
    model, collate = load(folder)
    kept = answer(model, questions, collate, quiet=quiet).kept
    assert kept is not None
    return kept.random_shares()
