"""What trimming costs and gains on questions: accuracy, time, and what was kept, beside random trimming."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vleff.machine import processor
from vleff.smarttrim.answering import Answers, Collate, answer, seconds_in_turns
from vleff.smarttrim.attachment import attach, detach
from vleff.smarttrim.execution import running, trimmers_of
from vleff.smarttrim.record import RunRecord
from vleff.smarttrim.report import Kept
from vleff.training.checkpoints import replace_file

FORMAT = 1
FULL, TRIMMED, RANDOM = "full", "trimmed", "random"
NOT_TRAINED, TRAINED = "the trimmed model's weights, not trained for it", "trained for it"

Watch = Callable[[int, Mapping[str, Tensor], list[RunRecord]], None]


@dataclass(frozen=True)
class Arm:
    """One way to answer.

    Attributes:
        accuracy: in percent.
        flop_ratio: the share of the full layers' multiply-adds that it did, trimmers' own included.
        seconds: what a question takes, by batch size; empty if nothing was timed.
        note: what one has to know about it.
    """

    accuracy: float
    flop_ratio: float
    seconds: dict[int, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a trimmed model.

    Attributes:
        name: of the model.
        questions: how many it was asked.
        arms: "full", the same weights with nothing dropped; "trimmed"; "random", as many tokens and heads at random.
        initial: mean number of tokens of a question with its image before any was dropped.
        tokens: by the name of a stack of layers, for each layer the tokens that it worked on, question by question.
        heads: by the name of an attention block, likewise its heads.
        all_heads: how many heads each block has.
        machine: what the times were measured on.
    """

    name: str
    questions: int
    arms: dict[str, Arm]
    initial: dict[str, float]
    tokens: dict[str, list[list[float]]]
    heads: dict[str, list[list[float]]]
    all_heads: dict[str, int]
    machine: str = ""

    def save(self, path: str | Path) -> None:
        """Writes it as JSON.

        Raises:
            FileExistsError: there is such a file already.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists already")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda part: part.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n"))

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected JSON, got {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT or "arms" not in content:
            raise ValueError(f"{path}: expected results of `vleff smarttrim evaluate`, format {FORMAT}")
        del content["format"]
        arms = {}
        for name, arm in content.pop("arms").items():
            seconds = {int(size): value for size, value in arm.pop("seconds").items()}
            arms[name] = Arm(**arm, seconds=seconds)
        return cls(arms=arms, **content)


def evaluate(
    model: PreTrainedModel,
    questions: Sequence[Any],
    collate: Collate,
    name: str,
    random: PreTrainedModel | None = None,
    batch: int = 32,
    timed_batches: Sequence[int] = (),
    timed: int = 32,
    watch: Watch | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Answers questions at full capacity, trimmed, and trimmed at random, and times the three in turns.

    Args:
        model: attached, trained.
        questions, collate: as of `answer`.
        name: of the model, for the report.
        random: a model with `SmartTrimConfig.random_shares` that was trained with them; None for the weights of
            `model` with random trimming of the same shares, which were not trained for it.
        batch: questions at a time for the accuracies.
        timed_batches: batch sizes to time; () to time nothing.
        timed: the number of questions for that; more are not timed.
        watch: of `answer`, of the trimmed arm.
        quiet: without progress bars.

    Raises:
        ValueError: there are no questions, the model has no trimmers, or `random` does not trim at random.
    """
    if not len(questions):
        raise ValueError("argument 'questions': expected at least one, got none")
    config = trimmers_of(model)[0].execution.config
    if random is not None and trimmers_of(random)[0].execution.config.random_shares is None:
        raise ValueError("argument 'random': expected a model with random_shares, got one without")
    note = NOT_TRAINED if random is None else TRAINED
    full = answer(model, questions, collate, batch, "full", quiet=quiet)
    trimmed = answer(model, questions, collate, batch, watch=watch, quiet=quiet)
    assert trimmed.kept is not None
    if random is None:
        random = attach(detach(deepcopy(model)), replace(config, random_shares=trimmed.kept.random_shares())).eval()
    chance = answer(random, questions, collate, batch, quiet=quiet)
    arms = {FULL: (model, "full"), TRIMMED: (model, "gathered"), RANDOM: (random, "gathered")}
    timed_questions = [questions[number] for number in range(min(timed, len(questions)))]
    seconds = {size: _times(arms, _batches(timed_questions, collate, size), quiet) for size in timed_batches}
    assert chance.kept is not None
    answers = {FULL: (full, 1.0, ""), TRIMMED: (trimmed, trimmed.kept.flop_ratio, "")}
    answers[RANDOM] = (chance, chance.kept.flop_ratio, note)
    return _evaluation(name, answers, seconds, trimmed.kept)


def margin(accuracy: float, questions: int) -> float:
    """Half of the 95 % interval of an accuracy, in percent."""
    share = accuracy / 100
    return 196 * math.sqrt(max(share * (1 - share), 0.0) / questions)


def _evaluation(
    name: str, answers: dict[str, tuple[Answers, float, str]], seconds: dict[int, dict[str, float]], kept: Kept
) -> Evaluation:
    arms = {
        arm: Arm(found.accuracy, ratio, {size: times[arm] for size, times in seconds.items()}, note)
        for arm, (found, ratio, note) in answers.items()
    }
    initial: dict[str, float] = {}
    tokens: dict[str, list[list[float]]] = {}
    heads: dict[str, list[list[float]]] = {}
    all_heads: dict[str, int] = {}
    for layer in kept.layers:
        stack = "/".join(part for part in (layer.module, layer.stream) if part)
        initial[stack] = layer.initial
        tokens.setdefault(stack, []).append(layer.tokens)
        for block, total in layer.all_heads.items():
            all_heads[f"{stack}: {block}"] = total
            heads.setdefault(f"{stack}: {block}", []).append(layer.heads[block])
    machine = f"{processor()}, {torch.get_num_threads()} threads" if seconds else ""
    return Evaluation(name, len(answers[FULL][0].correct), arms, initial, tokens, heads, all_heads, machine)


def _batches(questions: Sequence[Any], collate: Collate, size: int) -> list[dict[str, Tensor]]:
    found = []
    for first in range(0, len(questions), size):
        inputs = dict(collate(questions[first : first + size]))
        del inputs["labels"]
        found.append(inputs)
    return found


def _times(
    arms: Mapping[str, tuple[PreTrainedModel, str]], batches: Sequence[Mapping[str, Tensor]], quiet: bool
) -> dict[str, float]:
    """Seconds a question of each arm, a model and its mode."""

    def ask(model: PreTrainedModel, mode: str) -> None:
        with torch.inference_mode(), running(model, mode):
            for inputs in batches:
                model(**inputs)

    times = seconds_in_turns({arm: partial(ask, *how) for arm, how in arms.items()}, quiet)
    count = sum(len(inputs["input_ids"]) for inputs in batches)
    return {arm: seconds / count for arm, seconds in times.items()}
