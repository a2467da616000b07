"""Figures and a page of a trimmed model, in a folder."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vleff.smarttrim.evaluation import FULL, RANDOM, TRIMMED, Evaluation, margin
from vleff.smarttrim.results_files import accuracy_and_speed
from vleff.smarttrim.shown import ShownQuestion

PATCHES, DISTRIBUTION, CURVE, PAGE = "kept-patches.png", "kept-distribution.png", "accuracy-speed.png", "index.html"
_ROWS = 6  # of the picture of patches; the page has all


def check_ready(folder: Path) -> None:
    """Whether `write_pictures` can write into a folder.

    Raises:
        FileExistsError: the folder has one of its files.
        ImportError: matplotlib is not installed.
    """
    for name in (PATCHES, DISTRIBUTION, CURVE, PAGE):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists already; choose another folder (--output)")
    if find_spec("matplotlib") is None:
        raise ImportError("matplotlib is not installed: pip install matplotlib, or vleff[bench]")


def write_pictures(
    folder: Path, title: str, shown: Sequence[ShownQuestion], evaluation: Evaluation, others: Sequence[Evaluation] = ()
) -> list[Path]:
    """Writes three figures and the page, which contains them.

    Args:
        folder: is made if it is not there.
        title: names the model.
        shown: questions to show one by one.
        evaluation: whose distribution of kept tokens and heads is drawn.
        others: further points of the curve.

    Returns:
        the files.

    Raises:
        FileExistsError: the folder has one of the files.
        ImportError: matplotlib is not installed.
    """
    from vleff.smarttrim import pictures
    from vleff.smarttrim.page import write_page

    check_ready(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures.draw_kept_patches(shown[:_ROWS], folder / PATCHES)
    pictures.draw_distribution(evaluation, folder / DISTRIBUTION)
    pictures.draw_curve(*accuracy_and_speed([evaluation, *others]), folder / CURVE)
    figures = [(f"Kept by {evaluation.questions} questions", folder / DISTRIBUTION)]
    figures.append(("Accuracy against speed", folder / CURVE))
    write_page(shown, folder / PAGE, title, figures, table_of(evaluation), notes_on(evaluation))
    return [folder / name for name in (PATCHES, DISTRIBUTION, CURVE, PAGE)]


def table_of(evaluation: Evaluation) -> list[list[str]]:
    """Accuracy and time of the arms, in rows of text; the first is the head."""
    sizes = list(evaluation.arms[FULL].seconds)
    rows = [["", "accuracy, %", "FLOP ratio", *(f"batch {size}, ms" for size in sizes)]]
    for name in (FULL, TRIMMED, RANDOM):
        arm = evaluation.arms[name]
        row = [name, f"{arm.accuracy:.1f} ± {margin(arm.accuracy, evaluation.questions):.1f}", f"{arm.flop_ratio:.3f}"]
        for size in sizes:
            gain = evaluation.arms[FULL].seconds[size] / arm.seconds[size]
            row.append(f"{1000 * arm.seconds[size]:.2f}" + ("" if name == FULL else f" ({gain:.2f}x)"))
        rows.append(row)
    return rows


def notes_on(evaluation: Evaluation) -> str:
    """What one has to know to read `table_of`."""
    text = f"{evaluation.questions} questions, ± is half of the 95 % interval. Random: {evaluation.arms[RANDOM].note}."
    if evaluation.machine:
        text += f" Times are of a question, medians, the three in turns, on {evaluation.machine}."
    return text
