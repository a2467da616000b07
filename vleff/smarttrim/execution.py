"""How an attached model runs: at full capacity, trimmed, with decisions of someone else, watched."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.record import RunRecord

if TYPE_CHECKING:
    from vleff.smarttrim.trimming import Trimmers

MODES = ("full", "masked", "gathered")


@dataclass(eq=False)
class Execution:
    """What all trimmers of one model share.

    Attributes:
        config: of the trimming.
        mode: one of MODES; None for "gathered" in evaluation and for the config's in training.
        decisions: runs whose decisions the next runs repeat, in their order; None to decide by trimmers.
        runs: where runs leave their records; None if nobody asked.
        measured_gain: what `measure_gain` found last.
    """

    config: SmartTrimConfig
    mode: str | None = None
    decisions: deque[RunRecord] | None = None
    runs: list[RunRecord] | None = None
    measured_gain: float | None = None


def trimmers_of(model: nn.Module) -> "list[Trimmers]":
    """All trimmers in an attached model.

    Raises:
        ValueError: the model has none.
    """
    from vleff.smarttrim.trimming import Trimmers

    found = [module for module in model.modules() if isinstance(module, Trimmers)]
    if not found:
        raise ValueError(f"model: expected one with trimmers (smarttrim.attach), got {type(model).__name__} without")
    return found


@contextmanager
def running(model: nn.Module, mode: str) -> Iterator[None]:
    """Within it, the model runs in this mode, whether it trains or not.

    Args:
        model: attached.
        mode: "full", without dropping anything; "gathered", on kept tokens only; "masked", on all tokens, the dropped
            ones hidden. Dropped is at random only where the model is in training mode.

    Raises:
        ValueError: the mode is none of these, or the model has no trimmers.
    """
    if mode not in MODES:
        raise ValueError(f"argument 'mode': expected one of {', '.join(MODES)}, got {mode!r}")
    execution = trimmers_of(model)[0].execution
    before, execution.mode = execution.mode, mode
    try:
        yield
    finally:
        execution.mode = before


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[RunRecord]]:
    """Within it, the records of all runs are appended to the list it gives, in their order; a forward of the model
    makes one for each module that has trimmers."""
    execution = trimmers_of(model)[0].execution
    before, execution.runs = execution.runs, []
    try:
        yield execution.runs
    finally:
        execution.runs = before


@contextmanager
def repeated(model: nn.Module, runs: Sequence[RunRecord]) -> Iterator[None]:
    """Within it, runs drop the tokens and heads that these recorded runs dropped, in their order.

    The samples have to be the same, padded to the same lengths.
    """
    execution = trimmers_of(model)[0].execution
    before, execution.decisions = execution.decisions, deque(runs)
    try:
        yield
    finally:
        execution.decisions = before
