"""Does trimming by what each question needs keep the answers right? SmartTrim on Tile VQA, in resumable units.

    python examples/smarttrim_tile_vqa.py --data DIR --vision DIR --text DIR           runs what is missing, then tables
    python examples/smarttrim_tile_vqa.py --data DIR --vision DIR --text DIR --time    speed, on an idle machine
    python examples/smarttrim_tile_vqa.py --data DIR --demo DIR                        the same for the demo's model
    python examples/smarttrim_tile_vqa.py --table                                      the tables of what there is

A ViLT made of a ViT-S's first layers and MiniLM's word embeddings learns Tile VQA. From there it is trained equally
long as it is, with trimmers at three shares of its multiply-adds, and with random trimming of as many tokens and heads.
Before there are trimmers, half of the layers also learn what each cell holds and whether it matters for the question;
trimmers learn from answers alone. Each unit's result is a small file in --results as soon as it is there; what it
trained is in --work, with checkpoints. The command may run several times at once: processes share the units. --data
holds Fashion-MNIST; --vision is a ViT with patches of 14 pixels (model.safetensors), --text a BERT as wide as it.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from study_units import Units
from tile_vqa_models import PATCHES, WithCells, demo_model, study_model
from tile_vqa_study import ANSWERED, DEVICE, WORKERS, InOrder, TileStudy
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViltForQuestionAnswering,
)
from transformers.trainer_utils import get_last_checkpoint

from vleff import smarttrim
from vleff.data.fashion_mnist import read_fashion_mnist
from vleff.data.tile_features import TileCollator, cells_of, tile_tokenizer
from vleff.data.tile_vqa import KINDS, TileQuestion, TileVqa
from vleff.demo.packing import pack
from vleff.smarttrim.answering import AnsweringTraining, answer, seconds_a_question, train_trimmed
from vleff.smarttrim.kept_patches import KeptTokens, watching
from vleff.smarttrim.pretrained import DESCRIPTION

PATCHES_A_CELL = 4
BATCHES = (1, 8, 32, 128)
TIMED = 128  # questions
HELD_OUT = 300  # questions of the demo


@dataclass(frozen=True)
class Plan:
    """How long models learn, and how fast: before there are trimmers, at first without seeing empty cells, and further
    with each arm, in mode `training` and, unless told otherwise, gathered; accuracies are of `tested` questions."""

    steps: int = 5000
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    only_filled: float = 0.6
    further_steps: int = 500
    further_learning_rate: float = 5e-5
    batch: int = 64
    tested: int = 4000
    save_steps: int = 500
    ratios: tuple[float, ...] = (0.6, 0.45, 0.33)
    seeds: tuple[int, ...] = (0, 1, 2)
    training: str = "masked"
    gathered: bool = True
    bfloat16: bool = False


STUDY = Plan()
DEMO = Plan(  # ten minutes on one core with AVX-512's bfloat16, and an hour for all arms
    steps=6000,
    learning_rate=1e-3,
    schedule="warmup_stable_decay",
    only_filled=0.7,
    batch=32,
    further_learning_rate=3e-4,
    ratios=(0.45, 0.6, 0.33),
    bfloat16=True,
)


@dataclass(frozen=True)
class Study(TileStudy):
    """A model to make, what it learns from, and where results go."""

    make: Callable[[], ViltForQuestionAnswering]


class InOrderTrainer(InOrder, Trainer):
    """transformers' Trainer."""


class Curve(TrainerCallback):
    """Shows empty cells after a share of training, and follows the accuracy."""

    def __init__(self, study: Study) -> None:
        self.questions, self.collate = study.tested_on, study.collate
        self.units, self.only_filled = Units(study.work, study.work), study.plan.only_filled

    def on_step_begin(self, arguments: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        model.sees_empty_cells = state.global_step >= self.only_filled * state.max_steps

    def on_step_end(self, arguments: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        if state.global_step % max(1, state.max_steps // 10) == 0:
            points = self.units.get("curve", {})
            found = answer(model.model, self.questions, self.collate, ANSWERED, quiet=True)
            points[str(state.global_step)] = found.accuracy
            self.units.write("curve", points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's files")
    parser.add_argument("--vision", type=Path, help="folder of a ViT with patches of 14 pixels")
    parser.add_argument("--text", type=Path, help="folder of MiniLM, or of another BERT as wide as the ViT")
    parser.add_argument("--demo", type=Path, help="folder to write the data of `vleff demo` to")
    parser.add_argument("--work", type=Path, default=Path("smarttrim-study"), help="folder of trained models")
    parser.add_argument("--results", type=Path, default=Path("docs/results/smarttrim-study"))
    parser.add_argument("--time", action="store_true", help="only measure trained models; leave the machine alone")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.table:
        data, work, results = arguments.data, arguments.work, arguments.results
        if data is None or (arguments.demo is None and None in (arguments.vision, arguments.text)):
            parser.error("--data, and --vision and --text or --demo, are needed, except with --table")
        if arguments.demo is not None:
            work, results = work / "demo", results / "demo"
            tokenizer: Any = tile_tokenizer()
            study = Study(tokenizer, data, work, results, DEMO, lambda: demo_model(len(tokenizer)))
        else:
            tokenizer = AutoTokenizer.from_pretrained(arguments.text)
            study = Study(tokenizer, data, work, results, STUDY, lambda: study_model(arguments.vision, arguments.text))
        (measure if arguments.time else run)(study)
        if arguments.demo is not None and not arguments.time:
            write_demo(study, arguments.demo)
        arguments.results = results
    print(tables(arguments.results))


def run(study: Study) -> None:
    """All units that have no result yet."""
    units, plan = study.units, study.plan
    units.once("base", partial(base, study), wait=True)

    def trim(ratio: float, seed: int, wait: bool = False) -> str:
        config = smarttrim.SmartTrimConfig(flop_target=ratio, training=plan.training)
        name = f"trimmed-{ratio}"
        units.once(f"{name}-{seed}", partial(unit, study, name, seed, config), wait)
        return f"{name}-{seed}"

    for seed in plan.seeds:
        full = smarttrim.SmartTrimConfig(tokens=False, heads=False, distillation=0.0, cost=0.0)
        units.once(f"full-{seed}", partial(unit, study, "full", seed, full))
        for ratio in plan.ratios:
            trim(ratio, seed)
        if plan.gathered and 0.45 in plan.ratios:
            gathered = smarttrim.SmartTrimConfig(flop_target=0.45, training="gathered")
            units.once(f"gathered-0.45-{seed}", partial(unit, study, "gathered-0.45", seed, gathered))
    for seed in plan.seeds:
        for ratio in plan.ratios:
            shares = units[trim(ratio, seed, wait=True)]["shares"]
            # chance has no gradients: gathered learns what masked would, and is cheaper
            config = smarttrim.SmartTrimConfig(flop_target=ratio, training="gathered", random_shares=shares)
            units.once(f"random-{ratio}-{seed}", partial(unit, study, f"random-{ratio}", seed, config))


def base(study: Study) -> dict[str, Any]:
    """Trains the model that all arms begin with."""
    plan = study.plan
    torch.manual_seed(0)
    model, checkpoints = WithCells(study.make()), study.work / "base-checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        lr_scheduler_kwargs={} if plan.schedule == "cosine" else {"num_decay_steps": plan.steps // 4},
        bf16=plan.bfloat16,
        warmup_steps=min(100, plan.steps // 10),
        weight_decay=0.05,
        save_steps=plan.save_steps,
        save_total_limit=1,
        logging_steps=max(1, plan.steps // 100),
        dataloader_num_workers=WORKERS,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=DEVICE.type == "cpu",
    )
    trainer = InOrderTrainer(
        model,
        arguments,
        train_dataset=study.trained_on(0),
        data_collator=TileCollator(study.tokenizer, with_cells=True),
        callbacks=[Curve(study)],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)
    model.model.save_pretrained(study.work / "base")
    study.tokenizer.save_pretrained(study.work / "base")
    curve = json.loads((study.work / "curve.json").read_text())
    last = list(curve.values())
    return {"steps": plan.steps, "accuracy": last[-1], "last fifth gained": last[-1] - last[-3], "curve": curve}


def unit(study: Study, arm: str, seed: int, config: smarttrim.SmartTrimConfig) -> dict[str, Any]:
    """Trains one arm further, and reports it."""
    name, plan = f"{arm}-{seed}", study.plan
    torch.manual_seed(seed)
    model = smarttrim.attach(ViltForQuestionAnswering.from_pretrained(study.work / "base"), config)
    training = AnsweringTraining(
        plan.further_steps,
        plan.batch,
        plan.further_learning_rate,
        save_steps=plan.save_steps,
        shuffled=False,
        seed=seed,
    )
    train_trimmed(
        model,
        study.trained_on(100 + seed),
        study.collate,
        training,
        study.work / name,
        answer_loss,
        answer_predictions,
        plan.bfloat16,
        workers=WORKERS,
    )
    if not (study.work / f"{name}-model" / DESCRIPTION).exists():
        smarttrim.save_pretrained(model, study.work / f"{name}-model")
    return {"arm": arm, "seed": seed, **report(model, study.tested_on, study.collate)}


def report(model: ViltForQuestionAnswering, questions: Sequence[TileQuestion], collate: TileCollator) -> dict[str, Any]:
    """Accuracies, and what was kept."""
    full = answer(model, questions, collate, ANSWERED, mode="full")
    with watching(model) as watcher:
        trimmed = answer(model, questions, collate, ANSWERED, watch=watcher.add)
    assert trimmed.kept is not None
    correct: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    of_all, that_matter = [], []
    for number, kept in enumerate(watcher.samples):
        one = questions[number]
        correct[one.kind].append(bool(trimmed.correct[number]))
        cells = kept_of_cells(kept)
        of_all.append(float(cells.mean()))
        if one.matters.any():
            that_matter.append(float(cells[one.matters].mean()))
    tokens = np.array([kept.tokens for kept in watcher.samples])
    return {
        "full accuracy": full.accuracy,
        "accuracy": trimmed.accuracy,
        "by kind": {kind: 100 * mean(answers) for kind, answers in correct.items() if answers},
        "flop ratio": trimmed.kept.flop_ratio,
        "kept of all cells": mean(of_all),
        "kept of cells that matter": mean(that_matter),
        "tokens": {"mean": tokens.mean(0).round(2).tolist(), "spread": tokens.std(0).round(2).tolist()},
        "heads": np.mean([kept.heads.sum(1) for kept in watcher.samples], 0).round(2).tolist(),
        "shares": trimmed.kept.random_shares(),
    }


def kept_of_cells(kept: KeptTokens) -> np.ndarray:
    """float [16], the share of each cell's patches that the last layer works on."""
    places = torch.from_numpy(np.argwhere(np.ones((PATCHES, PATCHES))))
    cells = cells_of(places, PATCHES).numpy()
    return np.bincount(cells, kept.patches[-1].flatten(), minlength=16) / PATCHES_A_CELL


def measure(study: Study) -> None:
    """Seconds a question, of the first seed's models."""
    collate, questions, found = study.collate, study.tested_on, {}
    for ratio in study.plan.ratios:
        model = smarttrim.from_pretrained(study.work / f"trimmed-{ratio}-{study.plan.seeds[0]}-model")
        for size in BATCHES:
            asked = [questions[number] for number in range(min(TIMED, len(questions)))]
            batches = [collate(asked[first : first + size]) for first in range(0, len(asked), size)]
            found[f"{ratio}, batch {size}"] = seconds_a_question(model, batches)
    study.units.write("speed", found)


def answer_loss(outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return cross_entropy(outputs["logits"], inputs["labels"])


def answer_predictions(outputs: Any, inputs: Mapping[str, Tensor]) -> list[smarttrim.Prediction]:
    return [smarttrim.Prediction(outputs["logits"])]


def write_demo(study: Study, folder: Path) -> None:
    """What `vleff demo` needs: the first ratio's and seed's models, held-out questions, and figures."""
    plan = study.plan
    ratio, seed = plan.ratios[0], plan.seeds[0]
    units = {"full": f"full-{seed}", "trimmed": f"trimmed-{ratio}-{seed}", "random": f"random-{ratio}-{seed}"}
    kept = ("accuracy", "flop ratio", "kept of all cells", "kept of cells that matter", "by kind")
    arms = {arm: study.units[unit] for arm, unit in units.items()}
    figures = {
        "steps": plan.steps,
        "further_steps": plan.further_steps,
        "batch": plan.batch,
        "questions": plan.tested,
        "guessing": guessing(study.tested_on),
        "arms": {arm: {name: found[name] for name in kept} for arm, found in arms.items()},
    }
    models = [study.work / f"{units[arm]}-model" for arm in ("trimmed", "random")]
    held_out = list(TileVqa(read_fashion_mnist(study.data, "test"), HELD_OUT, 2))
    figures["kept"] = kept_shares(models[0], held_out, study.collate)
    pack(folder, *models, study.tokenizer, held_out, figures)


def kept_shares(folder: Path, questions: Sequence[TileQuestion], collate: TileCollator) -> dict[str, Any]:
    """What a trained model keeps of each question: its tokens by layer, and the heads of all trimmed layers."""
    model = smarttrim.from_pretrained(folder)
    with watching(model) as watcher:
        answer(model, questions, collate, ANSWERED, watch=watcher.add)
    tokens = np.array([kept.tokens / kept.tokens[0] for kept in watcher.samples])
    heads = np.array([kept.heads[1:].mean() for kept in watcher.samples])
    return {"tokens": tokens.round(3).tolist(), "heads": heads.round(3).tolist()}


def guessing(questions: Sequence[TileQuestion]) -> dict[str, float]:
    """What the most frequent answer of each kind of question gets, in percent: of all, and of each kind."""
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for question in questions:
        answers[question.kind][question.answer] += 1
    most = {kind: max(counts.values(), default=0) for kind, counts in answers.items()}
    shares = {kind: 100 * most[kind] / max(counts.total(), 1) for kind, counts in answers.items()}
    return {"all": 100 * sum(most.values()) / len(questions), **shares}


def tables(results: Path) -> str:
    """Means over seeds, with standard deviations where there are several."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*-*.json")):
        one = json.loads(path.read_text())
        arms.setdefault(one["arm"], []).append(one)
    columns = ("accuracy", "full accuracy", "flop ratio", "kept of all cells", "kept of cells that matter")
    lines = [f"| arm | seeds | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for arm, units in arms.items():
        cells = [_spread([one[column] for one in units], 2 if column.endswith("accuracy") else 3) for column in columns]
        lines.append(f"| {arm} | {len(units)} | {' | '.join(cells)} |")
    if (results / "speed.json").exists():
        lines += ["", "| FLOP target | full, ms a question | trimmed | times faster |", "| --- | --- | --- | --- |"]
        for name, seconds in json.loads((results / "speed.json").read_text()).items():
            full, trimmed = seconds["full"] * 1000, seconds["gathered"] * 1000
            lines.append(f"| {name} | {full:.2f} | {trimmed:.2f} | {full / trimmed:.2f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
