"""The demo: accuracy and speed of the model that ships with vleff, and pictures of what it keeps."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from vleff.cli_smarttrim import print_evaluation
from vleff.demo import DATA, recorded_figures
from vleff.demo.held_out import read_held_out
from vleff.smarttrim import evaluation, recipes, showing
from vleff.smarttrim.shown import shown_questions
from vleff.terminal import console, say

MODEL, RANDOM_MODEL = "trimmed", "random"
BATCHES = (1, 8, 32)
_TIMED = 96
_SHOWN = 24


def run(output: Path, count: int | None = None) -> evaluation.Evaluation:
    """Asks the model held-out questions, prints what it costs and gains, and writes pictures and a page.

    Args:
        output: the folder for them; None of their files may be there.
        count: of questions; all if None.

    Raises:
        FileExistsError: the folder has one of the files.
        ImportError: matplotlib or Pillow is not installed.
        ValueError: `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    showing.check_ready(output)
    with as_file(files("vleff.demo") / DATA) as folder:
        questions = read_held_out(folder)[:count]
        model, collate = recipes.load(folder / MODEL)
        chance = recipes.load_random(folder / RANDOM_MODEL)
    figures = recorded_figures()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(introduction(parameters, len(questions), figures))
    found = evaluation.evaluate(model, questions, collate, "vleff demo", chance, timed_batches=BATCHES, timed=_TIMED)
    print_evaluation(found)
    console.print(recorded_table(figures))
    say("Patches kept: up to the last layer. Those that matter show what a question is about; no trimmer learned them.")
    shown = shown_questions(model, questions[:_SHOWN], collate)
    for path in showing.write_pictures(output, "The demo's model on Tile VQA", shown, found):
        say(f"Wrote {path}")
    return found


def introduction(parameters: int, questions: int, figures: dict[str, Any]) -> str:
    """What the demo shows, and what it does not."""
    return (
        f"A ViLT with {parameters / 1e6:.1f} million parameters answers {questions} questions about grids of clothes "
        f"that it has not seen (Tile VQA, of Fashion-MNIST's test pictures): colours, items, counts, what is where. It "
        f"was trained for {figures['steps']} steps of {figures['batch']} questions on one core, with trimmers for "
        f"{figures['further_steps']} more. Questions come from five templates about ten kinds of clothes: the demo is "
        "about what trimming changes, not about how well a ViLT answers questions about photos.\n"
    )


def recorded_table(figures: dict[str, Any]) -> Table:
    """What was measured on more questions when the arms were trained, by kind of question."""
    title = (
        f"Accuracy, %, on {figures['questions']} other held-out questions when it was trained; "
        "all three arms learned equally long from the same weights"
    )
    arms, guessing = figures["arms"], figures["guessing"]
    columns = ("questions", *arms, "guessing")
    table = Table(*(Column(name, justify="right" if at else "left") for at, name in enumerate(columns)), title=title)
    table.box = SIMPLE_HEAD
    for kind, guessed in guessing.items():
        found = [arm["accuracy"] if kind == "all" else arm["by kind"][kind] for arm in arms.values()]
        table.add_row(kind, *(f"{one:.1f}" for one in (*found, guessed)))
    table.add_section()
    table.add_row("FLOP ratio", *(f"{arm['flop ratio']:.3f}" for arm in arms.values()))
    for name, share in (("patches kept", "kept of all cells"), ("of those that matter", "kept of cells that matter")):
        table.add_row(name, *(f"{100 * arm[share]:.0f} %" for arm in arms.values()))
    return table
