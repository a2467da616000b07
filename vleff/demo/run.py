"""The demo: accuracy and speed of the model that ships with vleff, and pictures of what it keeps."""

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from vleff.cli_smarttrim import print_evaluation
from vleff.demo.held_out import read_held_out
from vleff.smarttrim import evaluation, recipes, showing
from vleff.smarttrim.shown import shown_questions
from vleff.terminal import say

DATA = "data"
MODEL, RANDOM_MODEL, FIGURES = "trimmed", "random", "figures.json"
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
        figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(introduction(parameters, len(questions), figures))
    found = evaluation.evaluate(model, questions, collate, "vleff demo", chance, timed_batches=BATCHES, timed=_TIMED)
    print_evaluation(found)
    say(recorded_figures(figures))
    shown = shown_questions(model, questions[:_SHOWN], collate)
    for path in showing.write_pictures(output, "The demo's model on Tile VQA", shown, found):
        say(f"Wrote {path}")
    return found


def introduction(parameters: int, questions: int, figures: dict[str, Any]) -> str:
    """What the demo shows, and what it does not."""
    return (
        f"A ViLT with {parameters / 1e6:.1f} million parameters answers {questions} questions about grids of clothes "
        f"that it has not seen (Tile VQA, of Fashion-MNIST's test pictures): colours, items, counts, what is where. It "
        f"was trained for {figures['steps']} steps of {figures['batch']} questions, on one core; that is little, and "
        "longer training would make all three arms better. It is here to show what trimming does, not how well a ViLT "
        "can answer.\n"
    )


def recorded_figures(figures: dict[str, Any]) -> str:
    """What was measured on more questions when the model was trained."""
    arms = figures["arms"]
    return (
        f"\nMeasured when it was trained, on {figures['questions']} other held-out questions, each arm trained "
        f"{figures['further_steps']} steps on from the same weights: as it is {arms['full']['accuracy']:.1f} %, "
        f"trimmed {arms['trimmed']['accuracy']:.1f} % with {arms['trimmed']['flop ratio']:.3f} of the multiply-adds, "
        f"at random {arms['random']['accuracy']:.1f} % with {arms['random']['flop ratio']:.3f}.\n"
        f"Trimming keeps {100 * arms['trimmed']['kept of cells that matter']:.0f} % of the patches of the cells that a "
        f"question is about up to the last layer, and {100 * arms['trimmed']['kept of all cells']:.0f} % of all.\n"
    )
