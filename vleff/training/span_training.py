"""Trains readers, models that answer questions by a span of a paragraph, and lets them answer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vleff.data.span_features import SpanExample, Window, WindowCollator, make_windows
from vleff.data.span_predictions import AnswerCollector
from vleff.training.checkpoints import check_settings


@dataclass(frozen=True)
class SpanTraining:
    """How a reader is trained.

    Attributes:
        steps: optimizer steps.
        batch: windows a step.
        learning_rate: highest, after a linear warm-up; it falls linearly to 0.
        warmup: the share of steps that warm up.
        weight_decay: of matrices.
        save_steps: steps between two checkpoints.
        seed: of the order of windows and of dropout.
        bf16: products in bfloat16 by autocast; parameters and optimizer states stay as they are.
    """

    steps: int
    batch: int = 16
    learning_rate: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    save_steps: int = 200
    seed: int = 0
    bf16: bool = False


class _Windows(Dataset):
    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Window:
        return self.windows[number]


def train_reader(
    model: PreTrainedModel,
    windows: Sequence[Window],
    tokenizer: Any,
    training: SpanTraining,
    folder: str | Path,
    callbacks: Sequence[TrainerCallback] = (),
    quiet: bool = False,
) -> PreTrainedModel:
    """Trains a reader with transformers' Trainer: AdamW, gradients clipped at norm 1, padding by batch.

    Checkpoints go to `folder`; a call with the same folder and training goes on where an interrupted one stopped.

    Args:
        model: any model with `start_logits` and `end_logits`; what requires no gradient is not trained.
        windows: with their gold spans.
        callbacks: of the Trainer, a `PruningCallback` for example.
        quiet: without a progress bar.

    Returns:
        `model` itself, trained, in eval mode.

    Raises:
        ValueError: there are no windows, or the folder is that of another training.
    """
    if not windows:
        raise ValueError("argument 'windows': expected at least one, got none")
    check_settings(Path(folder), {**asdict(training), "windows": len(windows), "parameters": _count(model)})
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.warmup * training.steps),
        weight_decay=training.weight_decay,
        save_steps=training.save_steps,
        save_total_limit=1,
        logging_steps=max(1, training.steps // 20),
        remove_unused_columns=False,
        report_to=[],
        seed=training.seed,
        bf16=training.bf16,
        disable_tqdm=quiet,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=_Windows(windows),
        data_collator=WindowCollator(tokenizer),
        callbacks=list(callbacks),
    )
    last = get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return model.eval()


def read_questions(
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[SpanExample],
    batch: int = 32,
    max_length: int = 384,
    stride: int = 128,
    null_threshold: float | None = None,
    quiet: bool = False,
) -> AnswerCollector:
    """Lets a reader read questions; windows of similar length are read together.

    Args:
        model: plain, accelerated or with a subnetwork.
        batch: windows at a time.
        max_length, stride: of `make_windows`.
        null_threshold: of `AnswerCollector`.
        quiet: without a progress bar.

    Returns:
        the answers, and by how much "no answer" beats them.
    """
    windows = sorted(make_windows(tokenizer, examples, max_length, stride), key=lambda window: len(window.input_ids))
    collect, collate = AnswerCollector(examples, null_threshold), WindowCollator(tokenizer, with_gold=False)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for first in track(range(0, len(windows), batch), "reading", transient=True, disable=quiet):
                some = windows[first : first + batch]
                inputs = {name: values.to(model.device) for name, values in collate(some).items()}
                outputs = model(**inputs)
                collect.add(some, outputs.start_logits, outputs.end_logits)
    finally:
        model.train(training)
    return collect


def predict_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[SpanExample],
    batch: int = 32,
    max_length: int = 384,
    stride: int = 128,
    null_threshold: float | None = None,
    quiet: bool = False,
) -> dict[str, str]:
    """Answers questions, by their ids. The arguments are those of `read_questions`."""
    return read_questions(model, tokenizer, examples, batch, max_length, stride, null_threshold, quiet).answers()


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
