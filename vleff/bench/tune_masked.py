"""From which share of zeros on a linear layer is faster sparse: what `vleff tune` measures for MaskedLinear."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vleff.bench.timing import Comparison, compare, measure_rounds
from vleff.ops.fused_linear import fused_linear, pack_linear_weight, packs_linear_weight
from vleff.ops.masked_linear import masked_linear
from vleff.ops.masked_structure import MaskedStructure

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((768, 768), (3072, 768))
ROWS = (16, 128, 1024)
DENSITIES = (0.05, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7)
_SECONDS = 0.5
_LEAST_ROUNDS = 8


@dataclass(frozen=True)
class SparseMeasurement:
    """How much faster a linear layer is sparse.

    Attributes:
        dtype: "float32" or "bfloat16".
        density: the share of elements in its weight.
        gains: by shape and number of rows, the speedup of sparse over dense, the dense weight packed.
    """

    dtype: str
    density: float
    gains: dict[tuple[tuple[int, int], int], Comparison]

    @property
    def gain(self) -> float:
        """The geometric mean of the speedups."""
        return statistics.geometric_mean(comparison.speedup for comparison in self.gains.values())


def steps() -> int:
    """How often `measure_sparse` reports progress."""
    return sum(packs_linear_weight(dtype) for dtype in DTYPES) * len(DENSITIES) * len(SHAPES) * len(ROWS)


def measure_sparse(progress: Callable[[str], None]) -> list[SparseMeasurement]:
    """Times every shape sparse and dense, in turns.

    Args:
        progress: called before each of the `steps()`, with what is measured.
    """
    measurements = []
    with torch.inference_mode():
        for dtype in filter(packs_linear_weight, DTYPES):
            name = str(dtype).removeprefix("torch.")
            for density in DENSITIES:
                gains = {}
                for shape in SHAPES:
                    for rows in ROWS:
                        progress(f"{name}, {shape[0]} x {shape[1]}, {1 - density:.0%} zeros, {rows} rows")
                        gains[shape, rows] = _gain(shape, rows, density, dtype)
                measurements.append(SparseMeasurement(name, density, gains))
    return measurements


def densest(measurements: list[SparseMeasurement]) -> float:
    """The density up to which a product is at least as fast sparse; 0 if it is at none that was measured.

    Between the last density that gains and the first that loses, the logarithm of the gain is taken for linear.
    """
    found, gain = 0.0, 1.0
    for measurement in sorted(measurements, key=lambda one: one.density):
        if measurement.gain < 1:
            if found == 0:
                return 0.0
            share = math.log(gain) / (math.log(gain) - math.log(measurement.gain))
            return round(found + share * (measurement.density - found), 3)
        found, gain = measurement.density, measurement.gain
    return found


def as_choices(measurements: list[SparseMeasurement]) -> dict[str, dict[str, float]]:
    """The entry of a choice table. float16, which the kernel multiplies as float32, has the value of float32."""
    choices = {}
    for dtype in dict.fromkeys(one.dtype for one in measurements):
        choices[dtype] = {"densest": densest([one for one in measurements if one.dtype == dtype])}
    if "float32" in choices:
        choices["float16"] = choices["float32"]
    return choices


def as_measured(measurements: list[SparseMeasurement]) -> list[dict[str, Any]]:
    """What a choice table keeps of the measurements."""
    return [
        {"dtype": one.dtype, "density": one.density, "shape": shape, "rows": rows, "gain": c.speedup}
        for one in measurements
        for (shape, rows), c in one.gains.items()
    ]


def _gain(shape: tuple[int, int], rows: int, density: float, dtype: torch.dtype) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    structure = MaskedStructure.from_mask(torch.rand(shape, generator=generator) < density)
    values = torch.randn(structure.elements, generator=generator).to(dtype)
    tokens = torch.randn(rows, shape[1], generator=generator).to(dtype)
    packed = pack_linear_weight(structure.scatter(values))
    contenders = {
        "dense": partial(fused_linear, tokens, packed),
        "sparse": partial(masked_linear, tokens, values, structure),
    }
    for call in contenders.values():
        call()
    times = list(measure_rounds(contenders, _SECONDS, _LEAST_ROUNDS))
    return compare([one["dense"] for one in times], [one["sparse"] for one in times])
