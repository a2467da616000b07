"""Do the methods keep the answers right when they are stacked? SmartTrim, lottery and DiDE on Tile VQA.

    python examples/stack_tile_vqa.py --data DIR --base DIR --student DIR     runs what is missing, then the table
    python examples/stack_tile_vqa.py --table --figure FILE                   of what there is

All combinations whose speeds `vleff bench --stack` measures. They begin with the ViLT that `smarttrim_tile_vqa.py`
leaves in WORK/base or, with DiDE, with the students that `dide_tile_vqa.py` taught by soft labels and attention (the
folder of --student is its WORK; without it, combinations with DiDE are left out). With lottery, 90 % of the layers'
weights are pruned while the model learns, with DiDE while the ViLT teaches it; with SmartTrim, trimmers are trained
last. What is not pruned or trimmed learns as long as what is both. Each unit's result is a small file in --results as
soon as it is there; what it trained is in --work, with checkpoints. The command may run several times at once:
processes share the units. --data holds Fashion-MNIST. --small begins with the demo's model and its students.
"""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import dide_tile_vqa
import smarttrim_tile_vqa
import torch
from smarttrim_tile_vqa import answer_loss, answer_predictions
from tile_vqa_study import ANSWERED, DEVICE, WORKERS
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, ViltForQuestionAnswering
from transformers.trainer_utils import get_last_checkpoint

import vleff
from vleff import lottery, smarttrim
from vleff.bench.stack_results import FLOP_RATIO, ZEROS, subsets
from vleff.dide import DistillationConfig, DualEncoder, FusionTeacher, paper_arguments
from vleff.smarttrim.answering import AnsweringTraining, answer, train_trimmed

CONTROL = "accelerated"  # the combination of no methods
TAUGHT = "soft labels and attention"
SHARES = ("flop ratio", "zeros")
Methods = tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """How long models learn, and how fast: while they are pruned, in the first two thirds of the steps, and while
    trimmers are trained; without either as long as with both, as fast as with pruning. Accuracies are of `tested`
    questions."""

    pruning_steps: int = 1000
    pruning_rate: float = 3e-4
    trimming_steps: int = 500
    further_learning_rate: float = 1e-4
    batch: int = 64
    zeros: float = ZEROS
    flop_target: float = FLOP_RATIO
    tested: int = 4000
    save_steps: int = 500
    seeds: tuple[int, ...] = (0, 1, 2)
    bfloat16: bool = False


SMALL = Plan(pruning_rate=1e-3, further_learning_rate=3e-4, batch=32, bfloat16=True)


@dataclass(frozen=True)
class Study(dide_tile_vqa.Study):
    """The ViLT that all begin with or learn from, `teacher`, its students' folder, the data, and where results go."""

    students: Path | None

    def student(self, seed: int) -> Path:
        assert self.students is not None
        return self.students / dide_tile_vqa.unit_name(TAUGHT, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's files")
    parser.add_argument("--base", type=Path, help="folder of the ViLT to begin with, and of its tokenizer")
    parser.add_argument("--student", type=Path, help="folder of the folders of its students")
    parser.add_argument("--small", action="store_true", help="the ViLT is the demo's model")
    parser.add_argument("--work", type=Path, default=Path("stack-study"), help="folder of trained models")
    parser.add_argument("--results", type=Path, default=Path("docs/results/stack-study"))
    parser.add_argument("--table", action="store_true", help="only print the table, and draw the figure")
    parser.add_argument("--figure", type=Path, help="file to draw accuracies and speeds to")
    parser.add_argument("--speeds", type=Path, default=Path("docs/results/stack.json"), help="of vleff bench --stack")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.work, arguments.results = arguments.work / "small", arguments.results / "small"
    if not arguments.table:
        if None in (arguments.data, arguments.base):
            parser.error("--data and --base are needed, except with --table")
        tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        folders = arguments.data, arguments.work, arguments.results
        plan = SMALL if arguments.small else Plan()
        run(Study(tokenizer, *folders, plan, arguments.base, arguments.student))
    print(table(arguments.results))
    if arguments.figure is not None:
        draw(arguments.results, arguments.speeds, arguments.figure)


def run(study: Study) -> None:
    """All units that have no result yet; those that begin with what another one trained come last.

    Raises:
        FileNotFoundError: a student is missing.
    """
    wanted = [methods for methods in subsets().values() if study.students is not None or "DiDE" not in methods]
    for folder in map(study.student, study.plan.seeds if study.students is not None else ()):
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"{folder} holds no student: run dide_tile_vqa.py with --work {folder.parent}")
    every = [(methods, seed) for seed in study.plan.seeds for methods in wanted]
    for methods, seed in sorted(every, key=lambda one: begins_pruned(one[0])):
        if begins_pruned(methods) and unit_name(methods, seed) not in study.units:
            pruned = without_trimmers(methods)
            study.units.once(unit_name(pruned, seed), partial(result, study, pruned, seed), wait=True)
        study.units.once(unit_name(methods, seed), partial(result, study, methods, seed))


def unit_name(methods: Methods, seed: int) -> str:
    return f"{'-'.join(methods) or CONTROL}-{seed}"


def begins_pruned(methods: Methods) -> bool:
    """Whether a combination begins with the model of another one."""
    return "SmartTrim" in methods and "lottery" in methods


def without_trimmers(methods: Methods) -> Methods:
    return tuple(method for method in methods if method != "SmartTrim")


def result(study: Study, methods: Methods, seed: int) -> dict[str, Any]:
    model = vleff.accelerate(trained(study, methods, seed).to(DEVICE))
    answers = answer(model, study.tested_on, study.collate, ANSWERED)
    return {
        "methods": list(methods),
        "seed": seed,
        "accuracy": answers.accuracy,
        "flop ratio": None if answers.kept is None else answers.kept.flop_ratio,
        "zeros": zeros(model) if "lottery" in methods else None,
    }


def zeros(model: PreTrainedModel) -> float:
    """The share of the masked layers' weights that is pruned."""
    layers = lottery.masked_layers(model).values()
    return 1 - sum(layer.values.numel() for layer in layers) / sum(layer.weight.numel() for layer in layers)


def trained(study: Study, methods: Methods, seed: int) -> Any:
    """The model of a unit, trained unless it is there."""
    folder = study.work / f"{unit_name(methods, seed)}-model"
    if not folder.exists():
        torch.manual_seed(seed)
        model = (trim if "SmartTrim" in methods else learn)(study, methods, seed)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        save(model, methods, part)
        part.rename(folder)
    return load(folder, methods)


def learn(study: Study, methods: Methods, seed: int) -> Any:
    """Trains a model further, with DiDE by its teacher, and with lottery prunes it meanwhile."""
    plan, folder = study.plan, study.work / unit_name(methods, seed)
    prunes = "lottery" in methods
    model = first(study, methods, seed).to(DEVICE)
    steps = plan.pruning_steps if prunes else plan.pruning_steps + plan.trimming_steps
    pruner = lottery.GradualPruner(model, lottery.LotteryConfig(plan.zeros, end_step=round(2 / 3 * plan.pruning_steps)))
    arguments = paper_arguments(
        dide_tile_vqa.TASK,
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=plan.batch,
        learning_rate=plan.pruning_rate,
        lr_scheduler_type="cosine",
        save_steps=plan.save_steps,
        save_total_limit=1,
        logging_steps=max(1, steps // 20),
        dataloader_num_workers=WORKERS,
        bf16=plan.bfloat16,
        seed=seed,
    )
    others: dict[str, Any] = {
        "train_dataset": study.trained_on(200 + seed),
        "data_collator": partial(dide_tile_vqa.collate_classes, study.collate),
        "callbacks": [lottery.PruningCallback(pruner)] if prunes else [],
    }
    vleff.accelerate(model)
    if "DiDE" in methods:
        teacher = FusionTeacher(vleff.accelerate(study.fusion()))
        weights = DistillationConfig(hard_label_weight=1)
        trainer = dide_tile_vqa.InOrderTrainer(model, arguments, teacher, weights, **others)
    else:
        trainer = smarttrim_tile_vqa.InOrderTrainer(model, arguments, compute_loss_func=class_loss, **others)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    vleff.restore(model).cpu()  # where sparse weights are built
    return lottery.extract(model, {name: mask.cpu() for name, mask in pruner.masks.items()}) if prunes else model


def class_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return cross_entropy(outputs["logits"], labels)


def trim(study: Study, methods: Methods, seed: int) -> Any:
    """Trains trimmers on the model that the other methods give, and this with them."""
    plan, before = study.plan, without_trimmers(methods)
    model = (trained if begins_pruned(methods) else first)(study, before, seed)
    smarttrim.attach(model, smarttrim.SmartTrimConfig(flop_target=plan.flop_target))
    questions = study.trained_on(400 + seed)  # none that the model was pruned with
    steps, rate = plan.trimming_steps, plan.further_learning_rate
    training = AnsweringTraining(steps, plan.batch, rate, save_steps=plan.save_steps, shuffled=False, seed=seed)
    folder, losses = study.work / unit_name(methods, seed), (answer_loss, answer_predictions)
    return train_trimmed(
        model, questions, study.collate, training, folder, *losses, bfloat16=plan.bfloat16, workers=WORKERS
    )


def first(study: Study, methods: Methods, seed: int) -> Any:
    """What is neither pruned nor trimmed yet: the ViLT or a student."""
    return load(study.student(seed), ("DiDE",)) if "DiDE" in methods else load(study.teacher, ())


def load(folder: Path, methods: Methods) -> Any:
    if "SmartTrim" in methods:
        return smarttrim.from_pretrained(folder)
    if "lottery" in methods:
        return lottery.from_pretrained(folder)
    return (DualEncoder if "DiDE" in methods else ViltForQuestionAnswering).from_pretrained(folder).eval()


def save(model: Any, methods: Methods, folder: Path) -> None:
    """As `load` reads it."""
    if "SmartTrim" in methods:
        smarttrim.save_pretrained(model, folder)
    elif "lottery" in methods:
        lottery.save_pretrained(model, folder)
    else:
        model.save_pretrained(folder)


def finished(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of all seeds by combination, of those that have any."""
    found = {}
    for name, methods in subsets().items():
        paths = sorted(results.glob(f"{unit_name(methods, 0)[:-1]}[0-9]*.json"))
        if paths:
            found[name] = [json.loads(path.read_text()) for path in paths]
    return found


def table(results: Path) -> str:
    """Means over seeds, with standard deviations where there are several, in Markdown."""
    lines = [f"| combination | seeds | accuracy | points above {CONTROL} | FLOP ratio | zeros |", "|---" * 6 + "|"]
    found = finished(results)
    for name, units in found.items():
        accuracies = [unit["accuracy"] for unit in units]
        above = ""
        if name != CONTROL and CONTROL in found:
            above = f"{mean(accuracies) - mean(unit['accuracy'] for unit in found[CONTROL]):+.2f}"
        shares = (spread([unit[share] for unit in units if unit[share] is not None], 3) for share in SHARES)
        lines.append(f"| {name} | {len(units)} | {spread(accuracies, 2)} | {above} | {' | '.join(shares)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}" if values else ""


def draw(results: Path, speeds: Path, path: Path) -> None:
    """Accuracies, over the speeds that `vleff bench --stack` measured in float32 with the largest batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = json.loads(speeds.read_text())
    cell = max((cell for cell in measured["cells"] if cell["dtype"] == "fp32"), key=lambda cell: cell["batch"])
    accuracies = {name: mean(unit["accuracy"] for unit in units) for name, units in finished(results).items()}
    faster = {name: cell["speedup"][name]["speedup"] for name in accuracies}
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, accuracy in accuracies.items():
        nearest = sorted(accuracies, key=lambda other: abs(math.log(faster[other] / faster[name])))[:2][-1]
        side = 7 if accuracy >= accuracies[nearest] else -14  # away from the neighbour's label
        axes.plot(faster[name], accuracy, "o", color="#d1495b")
        axes.annotate(name, (faster[name], accuracy), (0, side), textcoords="offset points", ha="center", fontsize=8)
    ticks = (1, 2, 5, 10, 20, 50)
    axes.set(xscale="log", ylabel="accuracy on Tile VQA, percent")
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.margins(0.15)
    axes.set_xlabel(f"times faster than eager fp32 ({measured['model'].removesuffix('-stack')}, batch {cell['batch']})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
