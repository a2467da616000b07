"""The command `vleff smarttrim`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from vleff.terminal import console, failures, say

app = typer.Typer(help="Models that compute only the tokens and heads that each input needs.", no_args_is_help=True)

MODEL_HELP = "A ViLT, fine-tuned for visual question answering: a folder, or a name on the Hugging Face hub."
DATA_HELP = (
    'JSON (.json, .jsonl), {"image": path, "question": ..., "answer": ...} a row, or a data set of the hub with these '
    "columns."
)
TRIMMED_HELP = "The folder that `vleff smarttrim train` made."
OUTPUT_HELP = "The folder to write; an interrupted call with the same one goes on."
RANDOM_LIKE_HELP = "Train a control that drops at random, as much as this trimmed model does."
RANDOM_HELP = "A model of `train --random-like`; the trimmed model's weights, untrained for it, if left out."
SPLIT_HELP = "Of a data set of the hub."
RESULTS_HELP = "Results of `evaluate`, or folders of them, for further points of the curve; repeat it."


@app.command()
def train(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help=OUTPUT_HELP)],
    flop_target: Annotated[float, typer.Option(help="Share of the layers' multiply-adds to keep.")] = 0.45,
    random_like: Annotated[Path | None, typer.Option(help=RANDOM_LIKE_HELP)] = None,
    mode: Annotated[str, typer.Option(help="masked, or gathered: cheaper, learns less from a step.")] = "masked",
    epochs: Annotated[float, typer.Option(help="Passes over the questions.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Questions a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of the model, the highest.")] = 3e-5,
    trimmer_learning_rate: Annotated[float, typer.Option(help="Of the trimmers, the highest.")] = 1e-3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Compute products in bfloat16.")] = False,
    split: Annotated[str, typer.Option(help=SPLIT_HELP)] = "train",
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 200,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a model to drop what a question does not need, while it stays close to its own answers."""
    with failures():
        from vleff.data.image_questions import load_image_questions
        from vleff.smarttrim import recipes

        settings = recipes.TrainingSettings(
            flop_target=flop_target,
            mode=mode,
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            trimmer_learning_rate=trimmer_learning_rate,
            bfloat16=bfloat16,
            save_steps=save_steps,
            seed=seed,
        )
        recipes.train(model, load_image_questions(data, split), output, settings, random_like)
        say(f"The trimmed model is in {output}; measure it: vleff smarttrim evaluate {output} DATA")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help=TRIMMED_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    random: Annotated[Path | None, typer.Option(help=RANDOM_HELP)] = None,
    output: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes to time, separated by commas; 0 times nothing.")] = "1,8,32",
    timed: Annotated[int, typer.Option(help="How many of the questions are timed.")] = 32,
    split: Annotated[str, typer.Option(help=SPLIT_HELP)] = "validation",
) -> None:
    """Print accuracy and time of the full, the trimmed and a randomly trimmed model, and what was kept."""
    with failures("nothing was written."):
        from vleff.data.image_questions import load_image_questions
        from vleff.smarttrim import evaluation, recipes

        if output is not None and output.exists():
            raise FileExistsError(f"{output} exists already")
        sizes = _sizes(batch)
        questions = load_image_questions(data, split)
        loaded, collate = recipes.load(model)
        _say_unknown(recipes.known_answers(questions, loaded))
        chance = None if random is None else recipes.load_random(random)
        found = evaluation.evaluate(loaded, questions, collate, str(model), chance, timed_batches=sizes, timed=timed)
        print_evaluation(found)
        if output is not None:
            found.save(output)
            say(f"Wrote {output}")


@app.command()
def show(
    model: Annotated[Path, typer.Argument(help=TRIMMED_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help="The folder to write pictures and a page to.")],
    shown: Annotated[int, typer.Option(help="How many questions the page shows one by one.")] = 24,
    results: Annotated[list[Path] | None, typer.Option(help=RESULTS_HELP)] = None,
    random: Annotated[Path | None, typer.Option(help=RANDOM_HELP)] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes to time, separated by commas; 0 times nothing.")] = "8",
    split: Annotated[str, typer.Option(help=SPLIT_HELP)] = "validation",
) -> None:
    """Draw what each layer keeps of images and questions, how much questions differ, and accuracy against speed."""
    with failures("nothing was written."):
        from vleff.data.image_questions import load_image_questions
        from vleff.smarttrim import evaluation, recipes, showing
        from vleff.smarttrim.results_files import read_evaluations
        from vleff.smarttrim.shown import shown_questions

        if shown < 1:
            raise ValueError(f"shown: expected at least 1, got {shown}")
        showing.check_ready(output)
        others, sizes = read_evaluations(results or []), _sizes(batch)
        questions = load_image_questions(data, split)
        loaded, collate = recipes.load(model)
        chance = None if random is None else recipes.load_random(random)
        found = evaluation.evaluate(loaded, questions, collate, str(model), chance, timed_batches=sizes)
        one_by_one = shown_questions(loaded, questions[:shown], collate)
        for path in showing.write_pictures(output, str(model), one_by_one, found, others):
            say(f"Wrote {path}")


def print_evaluation(found: Any) -> None:
    """Tables of an Evaluation: its arms, and what was kept layer by layer."""
    from vleff.smarttrim.showing import notes_on, table_of

    head, *rows = table_of(found)
    table = Table(Column(head[0]), *(Column(name, justify="right") for name in head[1:]), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    say(notes_on(found))
    for what, stacks in (("tokens", found.tokens), ("heads", found.heads)):
        for name, layers in stacks.items():
            whole = found.initial[name] if what == "tokens" else found.all_heads[name]
            title = f"{what} of {whole:.4g} that layers keep ({escape(name)})"
            points = ("layer", "mean", "least", "5 %", "half", "95 %", "most")
            kept = Table(*(Column(point, justify="right") for point in points), title=title, box=SIMPLE_HEAD)
            for number, counts in enumerate(layers):
                kept.add_row(str(number), *_spread(counts))
            console.print(kept)


def _spread(counts: list[float]) -> list[str]:
    import numpy as np

    points = np.percentile(counts, (0, 5, 50, 95, 100))
    return [f"{np.mean(counts):.1f}", *(f"{point:.0f}" for point in points)]


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"batch: expected whole numbers separated by commas, got {text!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"batch: expected no number below 0, got {text!r}")
    return [size for size in sizes if size]


def _say_unknown(known: float) -> None:
    if known < 1:
        say(
            f"{100 * (1 - known):.1f} % of the questions have an answer that the model cannot give: they count as wrong"
        )
