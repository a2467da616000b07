"""Do lottery subnetworks adapt a reader to a new domain better than full fine-tuning? A study in resumable units.

    python examples/lottery_domain_adaptation.py --data DIR --model DIR        runs what is missing, then the table
    python examples/lottery_domain_adaptation.py --table                       the table of what there is

A reader learns SQuAD questions, is pruned in four ways, tuned on 64 or 256 questions of another domain and asked 1,000
questions from articles that it has not seen. Each unit takes less than ten minutes on two cores; its result is a
small file in --results as soon as it is finished, and what it trained stays in --work. `--target FILE` adds any
domain in SQuAD format.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from study_units import interval
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import vleff
from vleff import lottery
from vleff.data.span_features import Window, WindowCollator, make_windows, span_examples
from vleff.data.span_metrics import score_answers
from vleff.data.splits import answerable, sample, split_paragraphs
from vleff.data.squad import read_squad
from vleff.training.checkpoints import replace_file
from vleff.training.span_training import SpanTraining, predict_answers, train_reader

SOURCE = "squaddev_v1.1.json.gz"
TARGETS = ("new_wiki_v1.0.json.gz", "nyt_v1.0.json.gz", "reddit_v1.0.json.gz")
ARMS = ("dense", "magnitude", "attribution", "random")
SEEDS = 5
FEWER_SEEDS = 2  # of random subnetworks, and of the sparsities besides 70 %
SHOTS = {64: SpanTraining(steps=40, batch=8), 256: SpanTraining(steps=32, batch=16)}
SOURCE_EPOCHS, PRUNING_EPOCHS = 1.2, 0.3
LEARNING_RATES = {"source": 1e-4, "target": 5e-5}
LENGTH, STRIDE = 192, 64
BF16 = True  # products in bfloat16, everywhere alike
TESTED = 1000


def units(targets: list[Path]) -> Iterator[tuple[str, float, Path, int, int]]:
    """arm, sparsity, target, shots, seed: everything at 70 %; 50 and 90 % on the first domain, by the fewer seeds."""
    for seed in range(SEEDS):
        fewer = seed < FEWER_SEEDS
        for target in targets:
            for shots in SHOTS:
                for arm in ARMS if fewer else ARMS[:-1]:
                    yield arm, 0.0 if arm == "dense" else 0.7, target, shots, seed
        for sparsity in (0.5, 0.9) if fewer else ():
            for shots in SHOTS:
                for arm in ("magnitude", "attribution"):
                    yield arm, sparsity, targets[0], shots, seed


class RandomPruner(lottery.GradualPruner):
    """Prunes what a seed says, on the same schedule."""

    def _prune(self, sparsity: float) -> None:
        generator = torch.Generator().manual_seed(0)
        scores = {name: torch.rand(mask.shape, generator=generator) for name, mask in self._masks.items()}
        for name, score in scores.items():
            score.masked_fill_(~self._masks[name], -1.0)
        self._masks = lottery.select_masks(scores, sparsity)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of SQuAD and SQuADShifts files (.json.gz)")
    parser.add_argument("--model", help="the encoder to start from, a checkpoint with a fast tokenizer")
    parser.add_argument("--target", type=Path, action="append", default=[], help="another domain, in SQuAD format")
    parser.add_argument("--arm", choices=ARMS, action="append", help="only these, so that processes share the work")
    parser.add_argument("--work", type=Path, default=Path("lottery-study"), help="folder of trained models")
    parser.add_argument("--results", type=Path, default=Path("docs/results/lottery-study"))
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None or arguments.model is None:
            parser.error("--data and --model are needed, except with --table")
        study(arguments)
    print(table(arguments.results))
    print(comparison(arguments.results))


def study(arguments: argparse.Namespace) -> None:
    targets = [arguments.data / name for name in TARGETS] + arguments.target
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    for arm, sparsity, target, shots, seed in units(targets):
        name = f"{arm}-{sparsity:.0%}-{target.name.split('.')[0]}-{shots}-{seed}"
        path = arguments.results / f"{name}.json"
        if path.exists() or arm not in (arguments.arm or ARMS):
            continue
        print(f"== {name}", flush=True)
        pruned = prune(arguments, tokenizer, arm, sparsity)
        result = adapt(pruned, tokenizer, target, shots, seed, arguments.work / "tuning" / name)
        result |= {"arm": arm, "sparsity": sparsity, "target": target.name.split(".")[0], "shots": shots, "seed": seed}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(result) + "\n"
        replace_file(path, lambda part, content=content: part.write_text(content))


def prune(arguments: argparse.Namespace, tokenizer: Any, arm: str, sparsity: float) -> Path:
    """The source reader, pruned by an arm while it sees the source once more; dense arms see it as often."""
    folder = arguments.work / f"{arm}-{sparsity:.0%}"
    if (folder / "masks.safetensors").exists():
        return folder
    kept, held_out = split_paragraphs(read_squad(arguments.data / SOURCE), 0.05)
    windows = gold_windows(tokenizer, span_examples(kept))
    source = arguments.work / "source"
    if not (source / "config.json").exists():
        torch.manual_seed(0)
        reader = AutoModelForQuestionAnswering.from_pretrained(arguments.model)
        train(reader, windows, tokenizer, SOURCE_EPOCHS, source / "training")
        reader.save_pretrained(source)
    reader = AutoModelForQuestionAnswering.from_pretrained(source)
    scores = None
    if arm == "attribution":
        scores = head_scores(reader, tokenizer, gold_windows(tokenizer, span_examples(held_out)), arguments.work)
    steps = math.ceil(PRUNING_EPOCHS * len(windows) / 16)
    config = lottery.LotteryConfig(sparsity=sparsity, end_step=round(steps * 2 / 3))
    pruner = (RandomPruner if arm == "random" else lottery.GradualPruner)(reader, config, scores)
    train(reader, windows, tokenizer, PRUNING_EPOCHS, folder / "training", [lottery.PruningCallback(pruner)])
    reader.save_pretrained(folder)
    masks = {name: mask.to(torch.uint8) for name, mask in pruner.masks.items()}
    replace_file(folder / "masks.safetensors", lambda part: save_file(masks, part))
    return folder


def head_scores(reader: Any, tokenizer: Any, windows: list[Window], work: Path) -> lottery.HeadScores:
    if not (work / "heads.json").exists():
        collate = WindowCollator(tokenizer)
        batches = [collate([window]) for window in sample(windows, min(200, len(windows)))]
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            scores = lottery.attention_attribution(reader, batches, lottery.span_probability)
        scores.plot(work / "heads.png")
        scores.save(work / "heads.json")
    return lottery.HeadScores.load(work / "heads.json")


def adapt(pruned: Path, tokenizer: Any, target: Path, shots: int, seed: int, folder: Path) -> dict[str, Any]:
    """Tunes on a few questions of the target's first articles; answers 1,000 of the others, before and after."""
    learned, asked = split_paragraphs(read_squad(target), 0.5)
    questions = sample(answerable(span_examples(asked)), TESTED)
    few = sample(answerable(span_examples(learned)), shots, seed)
    reader = AutoModelForQuestionAnswering.from_pretrained(pruned)
    masks = {name: mask.bool() for name, mask in load_file(pruned / "masks.safetensors").items()}
    if not all(bool(mask.all()) for mask in masks.values()):
        lottery.extract(reader, masks)
    vleff.accelerate(reader)
    before_path = pruned / f"zero-shot-{target.name.split('.')[0]}.json"
    if not before_path.exists():
        before = json.dumps(ask(reader, tokenizer, questions))
        replace_file(before_path, lambda part: part.write_text(before))
    training = SHOTS[shots]
    training = replace(training, learning_rate=LEARNING_RATES["target"], save_steps=10**6, seed=seed, bf16=BF16)
    train_reader(reader, gold_windows(tokenizer, few), tokenizer, training, folder, quiet=True)
    zero_shot = json.loads(before_path.read_text())
    return {"zero_shot": zero_shot, **ask(reader, tokenizer, questions)}


def ask(reader: Any, tokenizer: Any, questions: list[Any]) -> dict[str, float]:
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        answers = predict_answers(reader, tokenizer, questions, max_length=LENGTH, stride=STRIDE, quiet=True)
    scores = score_answers(answers, questions)
    return {"exact_match": float(scores.exact_match.mean()), "f1": float(scores.f1.mean())}


def train(reader: Any, windows: list[Window], tokenizer: Any, epochs: float, folder: Path, callbacks: Any = ()) -> None:
    steps = math.ceil(epochs * len(windows) / 16)
    training = SpanTraining(steps, 16, LEARNING_RATES["source"], save_steps=100, bf16=BF16)
    vleff.accelerate(reader)
    train_reader(reader, windows, tokenizer, training, folder, callbacks)
    vleff.restore(reader)


def gold_windows(tokenizer: Any, examples: list[Any]) -> list[Window]:
    return [window for window in make_windows(tokenizer, examples, LENGTH, STRIDE) if window.start]


def table(results: Path) -> str:
    """Mean F1 over seeds with its 95 % interval (t distribution), in Markdown."""
    found: dict[tuple[str, int, float, str], list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        found.setdefault((one["target"], one["shots"], one["sparsity"], one["arm"]), []).append(one)
    lines = ["| domain | questions | sparsity | arm | seeds | zero-shot F1 | F1 | EM |", "|---" * 8 + "|"]
    order = {arm: number for number, arm in enumerate(ARMS)}
    for case in sorted(found, key=lambda case: (*case[:3], order[case[3]])):
        target, shots, sparsity, arm = case
        ones = found[case]
        f1, exact_match = (np.array([one[metric] for one in ones]) for metric in ("f1", "exact_match"))
        settings = f"| {target} | {shots} | {sparsity:.0%} | {arm} | {len(ones)} | {ones[0]['zero_shot']['f1']:.1f} "
        lines.append(settings + f"| {interval(f1)} | {exact_match.mean():.1f} |")
    return "\n".join(lines)


def comparison(results: Path) -> str:
    """What attribution gains over magnitude on the same few questions, and any reader by tuning, in points of F1."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    by_case = {tuple(one[key] for key in ("target", "shots", "seed", "sparsity", "arm")): one for one in found}
    differences: dict[str, list[float]] = {}
    for (*case, sparsity, arm), one in by_case.items():
        tuned = f"tuning, {arm} at {sparsity:.0%}"
        differences.setdefault(tuned, []).append(one["f1"] - one["zero_shot"]["f1"])
        other = by_case.get((*case, sparsity, "magnitude"))
        if arm == "attribution" and other is not None:
            differences.setdefault(f"attribution over magnitude at {sparsity:.0%}", []).append(one["f1"] - other["f1"])
    lines = ["", "| gain in F1 by | cases | mean | least | most |", "|---" * 5 + "|"]
    for name, gains in sorted(differences.items()):
        lines.append(f"| {name} | {len(gains)} | {np.mean(gains):.1f} | {min(gains):.1f} | {max(gains):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
