"""Trains generators of questions on pairs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vleff.training.checkpoints import check_settings
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.pairs import QuestionPair
from vleff.unanswerable.seq2seq import Seq2SeqGenerator
from vleff.unanswerable.source_words import source_words
from vleff.unanswerable.sources import GenerationSource
from vleff.unanswerable.words import lower_words

Generator = TypeVar("Generator", PairToSequence, Seq2SeqGenerator)


@dataclass(frozen=True)
class GeneratorTraining:
    """How a generator is trained (reconstruction: the paper does not say).

    Attributes:
        epochs: over the pairs; a number of `steps` goes before it.
        batch: pairs a step.
        learning_rate: of Adam, constant after a linear warm-up.
        warmup: the share of steps that warm up.
        clip: the gradient's norm, at most.
        save_steps: steps between two checkpoints.
        steps: optimizer steps; None for whole epochs.
        seed: of the order of pairs and of dropout.
    """

    epochs: float = 15.0
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.0
    clip: float = 5.0
    save_steps: int = 500
    steps: int | None = None
    seed: int = 0


class _Items(Dataset):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def source_of(pair: QuestionPair) -> GenerationSource:
    """What a generator reads of a pair."""
    return GenerationSource(pair.answerable, pair.context, pair.answer.text, pair.answer.start)


def train_generator(
    generator: Generator,
    pairs: Sequence[QuestionPair],
    training: GeneratorTraining,
    folder: str | Path,
    callbacks: Sequence[TrainerCallback] = (),
    quiet: bool = False,
) -> Generator:
    """Trains a generator to write the unanswerable question of each pair.

    With transformers' Trainer. Checkpoints go to `folder`, and a call with the same folder and training goes on where
    an interrupted one stopped.

    Args:
        generator: a PairToSequence, or a Seq2SeqGenerator (for which a learning rate of 1e-4 or below is usual).
        pairs: to learn from.
        callbacks: of the Trainer.
        quiet: without a progress bar.

    Returns:
        `generator` itself, trained, in eval mode.

    Raises:
        ValueError: there are no pairs, a pair is malformed, or the folder is that of another training.
    """
    if not pairs:
        raise ValueError("argument 'pairs': expected at least one, got none")
    model: PreTrainedModel
    if isinstance(generator, PairToSequence):
        limits = generator.config.max_question_words, generator.config.max_paragraph_words
        model, collate = generator, generator.collator()
        items: list[Any] = [(source_words(source_of(pair), *limits), lower_words(pair.unanswerable)) for pair in pairs]
    else:
        model, collate = generator.model, generator.collate
        items = [(generator.text_of(source_of(pair)), pair.unanswerable) for pair in pairs]
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    check_settings(Path(folder), {**asdict(training), "pairs": len(items), "parameters": count})
    arguments = _arguments(training, len(items), folder, quiet)
    trainer = Trainer(model, arguments, train_dataset=_Items(items), data_collator=collate, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    model.eval()
    return generator


def _arguments(training: GeneratorTraining, items: int, folder: str | Path, quiet: bool) -> TrainingArguments:
    steps = training.steps or training.epochs * -(-items // training.batch)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.steps or -1,
        per_device_train_batch_size=training.batch,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(training.warmup * steps),
        optim="adamw_torch_fused",
        max_grad_norm=training.clip,
        save_steps=training.save_steps,
        save_total_limit=1,
        logging_steps=max(1, round(steps / 50)),
        remove_unused_columns=False,
        report_to=[],
        seed=training.seed,
        disable_tqdm=quiet,
        use_cpu=not torch.cuda.is_available(),
    )
