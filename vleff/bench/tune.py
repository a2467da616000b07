"""`vleff tune`: measures the choices on this machine and writes them to a table that `vleff.choices` reads."""

import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vleff.bench.results import now
from vleff.bench.timing import Comparison, compare, measure_rounds, seconds
from vleff.bench.tune_masked import SparseMeasurement, as_choices, as_measured
from vleff.choices import SCHEMA, this_machine
from vleff.ops.fused_linear import fused_linear, pack_linear_weight, packs_linear_weight

DTYPES = (torch.float32, torch.bfloat16)
# [out_features, in_features] by size, up to the feed-forward block of BERT-base
SHAPES = (
    *((16, 16), (32, 32), (64, 64), (128, 64), (128, 128), (256, 128)),
    *((256, 256), (512, 256), (512, 512), (768, 768), (3072, 768)),
)
ROWS = (16, 128, 1024)
LEAST_GAIN = 1.05
_SECONDS = 0.8  # a shape and number of rows; 66 of them take less than a minute
_LEAST_ROUNDS = 20
_SHORTEST_TIMING = 5e-4  # calls are repeated up to this, in seconds


@dataclass(frozen=True)
class Measurement:
    """How much faster a linear layer is with a packed weight.

    Attributes:
        dtype: "float32" or "bfloat16".
        shape: out_features, in_features.
        gains: by number of rows, the speedup of packed over plain.
    """

    dtype: str
    shape: tuple[int, int]
    gains: dict[int, Comparison]

    @property
    def elements(self) -> int:
        """The size of the weight."""
        return self.shape[0] * self.shape[1]

    @property
    def gain(self) -> float:
        """The geometric mean of the speedups."""
        return statistics.geometric_mean(comparison.speedup for comparison in self.gains.values())


def steps() -> int:
    """How often `measure` reports progress."""
    return sum(packs_linear_weight(dtype) for dtype in DTYPES) * len(SHAPES) * len(ROWS)


def measure(progress: Callable[[str], None]) -> list[Measurement]:
    """Times every shape with a plain and a packed weight, in turns.

    Args:
        progress: called before each of the `steps()`, with what is measured.
    """
    measurements = []
    with torch.inference_mode():
        for dtype in filter(packs_linear_weight, DTYPES):
            name = str(dtype).removeprefix("torch.")
            for shape in SHAPES:
                gains = {}
                for rows in ROWS:
                    progress(f"{name}, {shape[0]} x {shape[1]}, {rows} rows")
                    gains[rows] = _gain_of_packing(shape, rows, dtype)
                measurements.append(Measurement(name, shape, gains))
    return measurements


def least_elements(measurements: list[Measurement]) -> int | None:
    """The size from which on every measured weight gains more than 5 %; None if the largest does not."""
    least = None
    for measurement in sorted(measurements, key=lambda one: -one.elements):
        if measurement.gain <= LEAST_GAIN:
            break
        least = measurement.elements
    return least


def as_table(measurements: list[Measurement], sparse: list[SparseMeasurement]) -> dict[str, Any]:
    """The content of a choice table: the choices, the machine that they hold for and the measured gains."""
    choices: dict[str, dict[str, int] | None] = {}
    for dtype in dict.fromkeys(one.dtype for one in measurements):
        least = least_elements([one for one in measurements if one.dtype == dtype])
        choices[dtype] = None if least is None else {"least_elements": least}
    measured = [
        {"dtype": one.dtype, "shape": one.shape, "rows": rows, "gain": c.speedup, "low": c.low, "high": c.high}
        for one in measurements
        for rows, c in one.gains.items()
    ]
    machine = {**this_machine(), "torch": torch.__version__}
    return {
        "schema": SCHEMA,
        "date": now(),
        "machine": machine,
        "pack_linear_weight": choices,
        "masked_linear": as_choices(sparse),
        "measured": measured,
        "measured_masked_linear": as_measured(sparse),
    }


@contextmanager
def replaced(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that writes a table to `path` in one step; what was there is kept as `<name>.bak`.

    If it is not called, everything stays as it was.

    Raises:
        OSError: the file cannot be written; found out at once, before anything is measured.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, backup = (path.with_name(f"{path.name}.{os.getpid()}.{end}") for end in ("part", "bak"))

    def write(content: dict[str, Any]) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copy2(path, backup)
            os.replace(backup, path.with_name(f"{path.name}.bak"))
        os.replace(part, path)

    try:
        part.touch()
        yield write
    finally:
        part.unlink(missing_ok=True)
        backup.unlink(missing_ok=True)


def _gain_of_packing(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    tokens = torch.randn(rows, shape[1], generator=generator).to(dtype)
    calls = {
        name: partial(fused_linear, tokens, kind, bias)
        for name, kind in (("plain", weight), ("packed", pack_linear_weight(weight)))
    }
    for call in calls.values():
        call()  # sets up the kernel
    fastest = min(seconds(call) for call in calls.values() for _ in range(3))
    repeats = max(1, round(_SHORTEST_TIMING / fastest))
    contenders = {name: partial(_repeat, call, repeats) for name, call in calls.items()}
    rounds = list(measure_rounds(contenders, _SECONDS, _LEAST_ROUNDS))
    return compare([times["plain"] for times in rounds], [times["packed"] for times in rounds])


def _repeat(function: Callable[[], object], times: int) -> None:
    for _ in range(times):
        function()
