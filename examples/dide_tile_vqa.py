"""Does a dual encoder answer questions like the fusion encoder that taught it, and what does it cost?

    python examples/dide_tile_vqa.py --data DIR --teacher DIR               runs what is missing, then the table
    python examples/dide_tile_vqa.py --data DIR --teacher DIR --latency     speed, on an idle machine
    python examples/dide_tile_vqa.py --table                                the table of what there is

Tile VQA: the teacher is the ViLT that `smarttrim_tile_vqa.py` leaves in WORK/base, or, with --small, the demo's, in
WORK/demo/base. Dual encoders begin with its weights and learn from right answers, from the teacher's, or from these and
its cross-modal attention, equally long. Each unit's result is a small file in --results as soon as it is there; what it
trained is in --work, with checkpoints. The command may run several times at once: processes share the units. --data
holds Fashion-MNIST.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_units import interval
from tile_vqa_study import ANSWERED, DEVICE, WORKERS, InOrder, TileStudy
from torch import Tensor
from transformers import AutoTokenizer, ViltForQuestionAnswering
from transformers.trainer_utils import get_last_checkpoint

import vleff
from vleff.bench.timing import compare, measure_rounds
from vleff.data.tile_features import TileCollator
from vleff.data.tile_vqa import TileQuestion
from vleff.dide import DistillationConfig, DistillationTrainer, DualEncoder, FusionTeacher, paper_arguments
from vleff.smarttrim.answering import answer

TASK = "snli-ve"  # one answer of several is right: classes, as in entailment
TEACHER = "fusion encoder"
ARMS = {
    "hard labels": DistillationConfig(soft_weight=0, attention_weight=0, hard_label_weight=1),
    "soft labels": DistillationConfig(attention_weight=0),
    "soft labels and attention": DistillationConfig(),
}


@dataclass(frozen=True)
class Plan:
    """How long students learn, and how fast; accuracies are of `tested` questions."""

    steps: int = 1500
    learning_rate: float = 3e-4
    batch: int = 64
    tested: int = 4000
    save_steps: int = 500
    seeds: tuple[int, ...] = (0, 1, 2)
    bfloat16: bool = False


SMALL = Plan(steps=2000, learning_rate=1e-3, batch=32, bfloat16=True)


@dataclass(frozen=True)
class Study(TileStudy):
    """A teacher, the data, and where results go."""

    teacher: Path

    def fusion(self) -> ViltForQuestionAnswering:
        model: Any = ViltForQuestionAnswering.from_pretrained(self.teacher).eval()
        return model.to(DEVICE)

    def accuracy(self, model: Any) -> float:
        return answer(vleff.accelerate(model), self.tested_on, self.collate, ANSWERED).accuracy


class InOrderTrainer(InOrder, DistillationTrainer):
    """vleff's Trainer of students."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's files")
    parser.add_argument("--teacher", type=Path, help="folder of a ViLT that answers questions, and of its tokenizer")
    parser.add_argument("--small", action="store_true", help="the teacher is the demo's model")
    parser.add_argument("--work", type=Path, default=Path("dide-study"), help="folder of trained models")
    parser.add_argument("--results", type=Path, default=Path("docs/results/dide-study"))
    parser.add_argument("--latency", action="store_true", help="only measure latency; leave the machine alone")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.work, arguments.results = arguments.work / "small", arguments.results / "small"
    if not arguments.table:
        if None in (arguments.data, arguments.teacher):
            parser.error("--data and --teacher are needed, except with --table")
        tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
        folders = arguments.data, arguments.work, arguments.results
        study = Study(tokenizer, *folders, SMALL if arguments.small else Plan(), arguments.teacher)
        if arguments.latency:
            study.units.write("tile-latency", latency(study))
        else:
            run(study)
    print(table(arguments.results))


def run(study: Study) -> None:
    """All units that have no result yet."""
    study.units.once(unit_name(TEACHER), partial(teacher_result, study))
    for seed in study.plan.seeds:
        for arm in ARMS:
            study.units.once(unit_name(arm, seed), partial(student_result, study, arm, seed))


def unit_name(arm: str, seed: int = 0) -> str:
    return f"tile-{arm.replace(' ', '-')}-{seed}"


def teacher_result(study: Study) -> dict[str, Any]:
    return {"arm": TEACHER, "seed": 0, "accuracy": study.accuracy(study.fusion())}


def student_result(study: Study, arm: str, seed: int) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "accuracy": study.accuracy(student(study, arm, seed))}


def student(study: Study, arm: str, seed: int) -> DualEncoder:
    """A trained one."""
    folder, plan = study.work / unit_name(arm, seed), study.plan
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        fusion = study.fusion()
        model = DualEncoder.from_fusion(fusion, TASK).train()
        arguments = paper_arguments(
            TASK,
            str(folder / "training"),
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="cosine",
            save_steps=plan.save_steps,
            save_total_limit=1,
            logging_steps=max(1, plan.steps // 20),
            dataloader_num_workers=WORKERS,
            bf16=plan.bfloat16,
            seed=seed,
        )
        trainer = InOrderTrainer(
            vleff.accelerate(model),
            arguments,
            FusionTeacher(vleff.accelerate(fusion)),
            ARMS[arm],
            train_dataset=study.trained_on(300 + seed),
            data_collator=partial(collate_classes, study.collate),
        )
        training = folder / "training"
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(training)) if training.is_dir() else None)
        vleff.restore(model).save_pretrained(folder)
    return DualEncoder.from_pretrained(folder).eval().to(DEVICE)


def collate_classes(collate: TileCollator, questions: Sequence[TileQuestion]) -> dict[str, Tensor]:
    batch = collate(questions)
    return batch | {"labels": batch["labels"].argmax(1)}


def latency(study: Study) -> dict[str, Any]:
    """Of a batch of questions about pictures: both read anew, and with the pictures' representations cached."""
    fusion = study.fusion()
    model: Any = DualEncoder.from_fusion(fusion, TASK).eval()
    vleff.accelerate(fusion)
    vleff.accelerate(model)
    inputs = study.collate(study.tested_on[:32])
    del inputs["labels"]
    images = {name: value for name, value in inputs.items() if name.startswith("pixel_")}
    text = {name: value for name, value in inputs.items() if name not in images}
    with torch.inference_mode():
        stored = model.encode_image(**images)
        contenders = {
            "fusion encoder": lambda: fusion(**inputs),
            "dual encoder": lambda: model(**inputs),
            "dual encoder, pictures cached": lambda: model.score(model.encode_text(**text), stored),
        }
        rounds = list(measure_rounds(contenders, budget=30.0))
    times = {name: [one[name] for one in rounds] for name in contenders}
    found: dict[str, Any] = {"batch": 32, "threads": torch.get_num_threads()}
    for name in contenders:
        compared = compare(times["fusion encoder"], times[name])
        found[name] = {"milliseconds": 1e3 * float(np.median(times[name])), "speedup": compared.speedup}
        found[name] |= {"low": compared.low, "high": compared.high}
    return found


def table(results: Path) -> str:
    """Means over seeds with 95 % intervals, in Markdown."""
    lines = ["| Tile VQA | seeds | accuracy | below the teacher |", "|---" * 4 + "|"]
    teacher = None
    for arm in (TEACHER, *ARMS):
        paths = sorted(results.glob(f"tile-{arm.replace(' ', '-')}-[0-9].json"))
        accuracies = [json.loads(path.read_text())["accuracy"] for path in paths]
        if accuracies:
            teacher = accuracies[0] if arm == TEACHER else teacher
            below = "" if arm == TEACHER or teacher is None else f"{teacher - float(np.mean(accuracies)):.1f}"
            lines.append(f"| {arm} | {len(accuracies)} | {interval(accuracies)} | {below} |")
    path = results / "tile-latency.json"
    if path.exists():
        found = json.loads(path.read_text())
        lines += ["", f"| {found['batch']} questions | ms | times faster |", "|---" * 3 + "|"]
        for name, one in found.items():
            if isinstance(one, dict):
                times = f"{one['speedup']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
                lines.append(f"| {name} | {one['milliseconds']:.1f} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
