"""The whole method for reading comprehension: find a subnetwork on a source domain, tune it on a target domain."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedModel

import vleff
from vleff.data.span_features import SpanExample, Window, WindowCollator, make_windows, span_examples
from vleff.data.span_metrics import SpanScores, score_answers
from vleff.data.splits import sample, split_paragraphs
from vleff.data.squad import Paragraph
from vleff.lottery.attribution import STEPS, HeadScores, attention_attribution, span_probability
from vleff.lottery.config import LotteryConfig
from vleff.lottery.pruning import GradualPruner, PruningCallback
from vleff.lottery.subnetwork import extract, from_pretrained, save_pretrained
from vleff.training.checkpoints import check_settings, replace_file
from vleff.training.span_training import SpanTraining, predict_answers, train_reader
from vleff.training.sparse_checkpoints import holds_subnetwork

SOURCE, HEADS, FOUND, MASKS = "source", "heads.json", "found", "masks.safetensors"
_HELD_OUT = 0.05


@dataclass(frozen=True)
class ReadingSettings:
    """How a reader's subnetwork is found and tuned; reconstructions, except that attribution has 20 steps.

    Attributes:
        sparsity, ranking, strength: of `LotteryConfig`; strength 0 leaves attribution out.
        source_epochs: passes over the source domain before pruning.
        pruning_epochs: passes during which weights are pruned; the last third trains what is left.
        attribution_examples: held-out windows whose heads are scored.
        batch, learning_rate, seed: of the training.
        max_length, stride: of the windows.
    """

    sparsity: float = 0.7
    ranking: str = "global"
    strength: float = 1.0
    source_epochs: float = 2.0
    pruning_epochs: float = 2.0
    attribution_examples: int = 200
    batch: int = 16
    learning_rate: float = 3e-5
    seed: int = 0
    max_length: int = 384
    stride: int = 128


def find(model: str | Path, paragraphs: Sequence[Paragraph], folder: str | Path, settings: ReadingSettings) -> Path:
    """Trains a reader on a source domain, scores its heads and prunes it.

    Each stage leaves its result in `folder`; a call with the same folder and settings goes on where one stopped.

    Args:
        model: a transformers checkpoint, a folder or a name on the hub.
        paragraphs: the source domain.

    Returns:
        `folder`: `source` is the dense reader, `heads.json` its heads' scores, `found` the pruned reader, and
        `masks.safetensors` what is left of it.

    Raises:
        ValueError: the folder was made with other settings.
    """
    folder = Path(folder)
    check_settings(folder, {"model": str(model), **asdict(settings)})
    kept, held_out = split_paragraphs(paragraphs, _HELD_OUT, settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / SOURCE if (folder / SOURCE).exists() else model)
    windows = _windows(tokenizer, span_examples(kept), settings)
    if not (folder / SOURCE).exists():
        torch.manual_seed(settings.seed)
        reader = AutoModelForQuestionAnswering.from_pretrained(model)
        training = _training(settings, settings.source_epochs, windows)
        _accelerated(train_reader, reader, windows, tokenizer, training, folder / "training-source")
        _save(reader, tokenizer, folder / SOURCE)
    reader = AutoModelForQuestionAnswering.from_pretrained(folder / SOURCE)
    scores = None
    if settings.strength > 0:
        scores = _head_scores(reader, tokenizer, span_examples(held_out), folder, settings)
    if not (folder / FOUND).exists():
        training = _training(settings, settings.pruning_epochs, windows)
        config = LotteryConfig(
            sparsity=settings.sparsity,
            end_step=max(1, round(training.steps * 2 / 3)),
            ranking=settings.ranking,
            strength=settings.strength,
        )
        pruner = GradualPruner(reader, config, scores)
        callbacks = [PruningCallback(pruner)]
        _accelerated(train_reader, reader, windows, tokenizer, training, folder / "training-pruning", callbacks)
        replace_file(folder / MASKS, lambda part: save_file(_bytes(pruner), part))
        _save(reader, tokenizer, folder / FOUND)
    return folder


def tune(
    found: str | Path,
    examples: Sequence[SpanExample],
    folder: str | Path,
    settings: ReadingSettings,
    steps: int | None = None,
    remainder: str = "zero",
) -> Path:
    """Tunes the subnetwork that `find` left on the examples of a target domain, and saves it.

    Args:
        found: the folder of `find`.
        examples: few or many, answerable.
        folder: gets the subnetwork, for `from_pretrained`, and the tokenizer.
        steps: of training; ten passes over the examples, and at least 100, if None.
        remainder: of `extract`; "frozen" keeps the source reader's other weights.

    Raises:
        FileExistsError: the folder holds a subnetwork already.
    """
    found, folder = Path(found), Path(folder)
    if holds_subnetwork(folder):
        raise FileExistsError(f"{folder} holds a subnetwork already")
    tokenizer = AutoTokenizer.from_pretrained(found / FOUND)
    reader = AutoModelForQuestionAnswering.from_pretrained(found / (FOUND if remainder == "zero" else SOURCE))
    masks = {name: mask.bool() for name, mask in load_file(found / MASKS).items()}
    extract(reader, masks, remainder)
    windows = _windows(tokenizer, examples, settings)
    count = steps or max(100, math.ceil(10 * len(windows) / settings.batch))
    training = SpanTraining(count, settings.batch, settings.learning_rate, seed=settings.seed)
    _accelerated(train_reader, reader, windows, tokenizer, training, folder / "training")
    tokenizer.save_pretrained(folder)
    save_pretrained(reader, folder)
    return folder


def load_reader(path: str | Path) -> tuple[PreTrainedModel, Any]:
    """A reader and its tokenizer: a subnetwork, the folder of `find` (its pruned reader), or any checkpoint."""
    path = Path(path) / FOUND if (Path(path) / FOUND).is_dir() else path
    if holds_subnetwork(Path(path)):
        return from_pretrained(path), AutoTokenizer.from_pretrained(path)
    return AutoModelForQuestionAnswering.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def evaluate(
    reader: PreTrainedModel, tokenizer: Any, examples: Sequence[SpanExample], settings: ReadingSettings
) -> SpanScores:
    """Exact match and F1 of a reader, which is accelerated for that."""
    sizes = {"max_length": settings.max_length, "stride": settings.stride}
    answers = _accelerated(predict_answers, reader, tokenizer, examples, **sizes)
    return score_answers(answers, examples)


def _accelerated(function: Any, reader: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
    """Calls function(reader, ...), the reader accelerated meanwhile."""
    vleff.accelerate(reader)
    try:
        return function(reader, *arguments, **options)
    finally:
        vleff.restore(reader)


def _head_scores(
    reader: PreTrainedModel, tokenizer: Any, examples: list[SpanExample], folder: Path, settings: ReadingSettings
) -> HeadScores:
    if not (folder / HEADS).exists():
        windows = _windows(tokenizer, examples, settings)
        chosen = sample(windows, min(settings.attribution_examples, len(windows)), settings.seed)
        collate = WindowCollator(tokenizer)
        scores = attention_attribution(reader, [collate([window]) for window in chosen], span_probability, STEPS)
        scores.plot(folder / "heads.png")
        scores.save(folder / HEADS)
    return HeadScores.load(folder / HEADS)


def _windows(tokenizer: Any, examples: Sequence[SpanExample], settings: ReadingSettings) -> list[Window]:
    """The windows with a gold span."""
    windows = make_windows(tokenizer, examples, settings.max_length, settings.stride)
    return [window for window in windows if window.start]


def _training(settings: ReadingSettings, epochs: float, windows: list[Window]) -> SpanTraining:
    steps = max(1, math.ceil(epochs * len(windows) / settings.batch))
    return SpanTraining(steps, settings.batch, settings.learning_rate, seed=settings.seed)


def _save(reader: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Saves under a name of its own first: the folder is there as a whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    reader.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)


def _bytes(pruner: GradualPruner) -> dict[str, torch.Tensor]:
    return {name: mask.to(torch.uint8) for name, mask in pruner.masks.items()}
