"""Points of accuracy against speed, from files of results."""

from collections.abc import Sequence
from pathlib import Path

from vleff.smarttrim.evaluation import FULL, RANDOM, TRIMMED, Evaluation

Points = dict[str, list[tuple[float, float, int]]]

MEASURED, PREDICTED = "times faster than full, measured, batch {}", "times fewer multiply-adds in the layers"


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Results of `vleff smarttrim evaluate`: files, or all in a folder.

    Raises:
        FileNotFoundError: one is missing, or a folder has none.
        ValueError: one is something else.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"{path}: expected results (*.json), got none")
        files += inside
    return [Evaluation.load(path) for path in files]


def accuracy_and_speed(evaluations: Sequence[Evaluation]) -> tuple[Points, str]:
    """For each arm its (speed, accuracy in percent, number of questions), and what the speed is.

    It is measured, at the largest batch size that all were timed with, if there is one; else it is one over the share
    of multiply-adds.
    """
    sizes = set.intersection(*({*one.arms[TRIMMED].seconds} for one in evaluations)) if evaluations else set()
    points: Points = {}
    for one in evaluations:
        for name in (FULL, TRIMMED, RANDOM):
            arm = one.arms[name]
            time = arm.seconds[max(sizes)] / one.arms[FULL].seconds[max(sizes)] if sizes else arm.flop_ratio
            points.setdefault(name, []).append((1 / time, arm.accuracy, one.questions))
    return points, MEASURED.format(max(sizes)) if sizes else PREDICTED
