"""What a run of `vleff bench` found, and its file."""

import datetime
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers

from vleff.bench.matching import Match
from vleff.bench.timing import Comparison, compare
from vleff.machine import gpu, processor

BASELINE = "dense"
OURS = "vleff"

AnyCell = TypeVar("AnyCell")


@dataclass
class Cell:
    """One dtype and batch size.

    Attributes:
        dtype: "fp32" or "bf16".
        batch: samples a batch.
        batches: how many batches one round runs.
        mean_length, padded_length: tokens a sample, over these batches.
        flops: operations a round: "dense_padded", "dense_true" (the dense model without padding), "vleff".
        times: seconds a round, of every engine.
        matches: how the outputs of each engine compare with those of dense.
    """

    dtype: str
    batch: int
    batches: int
    mean_length: float
    padded_length: float
    flops: dict[str, int]
    times: dict[str, list[float]] = field(default_factory=dict)
    matches: dict[str, Match] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Complete rounds."""
        return min((len(times) for times in self.times.values()), default=0)

    @property
    def flop_ratio(self) -> float:
        """Operations of dense at its padded lengths over those of vleff."""
        return self.flops["dense_padded"] / self.flops["vleff"]

    def milliseconds(self, engine: str) -> float:
        """Median time a batch."""
        times = sorted(self.times[engine])
        middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
        return middle / self.batches * 1e3

    def speedup(self, over: str = BASELINE) -> Comparison:
        """How many times faster vleff is than another engine."""
        return compare(self.times[over], self.times[OURS])

    def efficiency(self) -> float:
        """Which part of the saved operations became saved time: the speedup over the FLOP ratio."""
        return self.speedup().speedup / self.flop_ratio


@dataclass
class RunResults(Generic[AnyCell]):
    """All that a run measured, whatever its cells are.

    Attributes:
        model, weights, samples: what ran, in words.
        command: the command line.
        date: when it started, UTC, ISO 8601.
        machine: see `machine()`.
        cells: the measured cells, in order.
        unavailable: why an engine that was asked for did not run, by name.
        complete: False while running, and after an interruption.
    """

    model: str
    weights: str
    samples: str
    command: str
    date: str
    machine: dict[str, Any]
    cells: list[AnyCell] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def as_json(self) -> dict[str, Any]:
        """Everything, for a `ResultFile`."""
        return asdict(self)


@dataclass
class Results(RunResults[Cell]):
    """Of `vleff bench`."""

    def as_json(self) -> dict[str, Any]:
        """Everything, with the derived numbers beside the times."""
        content = asdict(self)
        content["cells"] = [_cell_as_json(cell) for cell in self.cells]
        return content


def machine(device: str = "cpu") -> dict[str, Any]:
    """The device, processor, threads, instruction set and versions that a measurement depends on.

    Args:
        device: "cpu" or "cuda", where it ran.
    """
    return {
        "device": gpu() if device == "cuda" else "CPU",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.ops.vleff.cpu_isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class ResultFile:
    """A JSON file of its own for one run: it never replaces an earlier run's, and is whole at any moment.

    Args:
        folder: made if missing.
        results: the first content. The file is named after the model and the date.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, results: RunResults[Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        model = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(results.model).resolve().name)
        stem = f"{model}-{results.date[:19].replace(':', '')}"
        for attempt in range(1, 10_000):
            self.path = folder / f"{stem}{f'-{attempt}' if attempt > 1 else ''}.json"
            try:
                self._part.touch(exist_ok=False)  # whoever makes it owns the name
            except FileExistsError:
                continue
            if not self.path.exists():
                self.write(results)
                return
            self._part.unlink()
        raise FileExistsError(f"{folder}: no free file name for {stem}")

    def write(self, results: RunResults[Any]) -> None:
        """Replaces the content in one step."""
        self._part.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(self._part, self.path)

    @property
    def _part(self) -> Path:
        return self.path.with_suffix(".json.part")

    def discard(self) -> None:
        """Removes the file again, for a run that measured nothing."""
        self.path.unlink(missing_ok=True)


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    content = asdict(cell) | {"rounds": cell.rounds}
    if not cell.rounds:
        return content
    content["milliseconds"] = {engine: cell.milliseconds(engine) for engine in cell.times}
    content["speedup"] = {engine: asdict(cell.speedup(engine)) for engine in cell.times if engine != OURS}
    content |= {"flop_ratio": cell.flop_ratio, "efficiency": cell.efficiency()}
    return content
