"""Figures and a page of a trimmed model, in a folder."""

from collections.abc import Sequence
from pathlib import Path

from vleff.smarttrim.evaluation import FULL, RANDOM, TRIMMED, Evaluation, margin
from vleff.smarttrim.results_files import accuracy_and_speed
from vleff.smarttrim.shown import ShownQuestion

PATCHES, DISTRIBUTION, CURVE, PAGE = "kept-patches.png", "kept-distribution.png", "accuracy-speed.png", "index.html"
_ROWS = 6  # of the picture of patches; the page has all


def check_free(folder: Path, names: Sequence[str] = (PATCHES, DISTRIBUTION, CURVE, PAGE)) -> None:
    """
    Raises:
        FileExistsError: the folder has one of these files.
    """
    for name in names:
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists already; choose another folder")


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

    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures.draw_kept_patches(shown[:_ROWS], folder / PATCHES)
    pictures.draw_distribution(evaluation, folder / DISTRIBUTION)
    pictures.draw_curve(*accuracy_and_speed([evaluation, *others]), folder / CURVE)
    figures = [(f"Kept by {evaluation.questions} questions", folder / DISTRIBUTION)]
    figures.append(("Accuracy against speed", folder / CURVE))
    write_page(shown, folder / PAGE, title, figures, table_of(evaluation))
    return [folder / name for name in (PATCHES, DISTRIBUTION, CURVE, PAGE)]


def table_of(evaluation: Evaluation) -> list[list[str]]:
    """Accuracy and time of the arms, in rows of text; the first is the head."""
    sizes = list(evaluation.arms[FULL].seconds)
    head = ["", f"accuracy of {evaluation.questions} questions, %", "multiply-adds"]
    rows = [[*head, *(f"ms a question, batch {size}" for size in sizes)]]
    for name in (FULL, TRIMMED, RANDOM):
        arm = evaluation.arms[name]
        around = margin(arm.accuracy, evaluation.questions)
        row = [f"{name} ({arm.note})" if arm.note else name, f"{arm.accuracy:.1f} ± {around:.1f}"]
        row.append(f"{arm.flop_ratio:.3f}")
        for size in sizes:
            gain = evaluation.arms[FULL].seconds[size] / arm.seconds[size]
            row.append(f"{1000 * arm.seconds[size]:.2f}" + ("" if name == FULL else f" ({gain:.2f}x)"))
        rows.append(row)
    return rows
