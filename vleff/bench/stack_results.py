"""What a run of `vleff bench --stack` found."""

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from vleff.bench.results import RunResults
from vleff.bench.timing import Comparison, compare

FLOP_RATIO = 0.45  # that trimmers leave of layers and trimmers
ZEROS = 0.9  # of the weights of every linear layer in the encoder
METHODS = ("SmartTrim", "lottery", "DiDE")
EAGER, REFERENCE = "eager", "eager fp32"


def subsets() -> dict[str, tuple[str, ...]]:
    """All combinations of the methods by name; that of none is the accelerated model."""
    chosen = [some for count in range(len(METHODS) + 1) for some in combinations(METHODS, count)]
    return {" + ".join(some) or "accelerated": some for some in chosen}


@dataclass
class StackCell:
    """One dtype and batch size.

    Attributes:
        dtype: "fp32" or "bf16"; `REFERENCE` is fp32 in any.
        batch: questions with photos.
        flop_ratios: what trimmers leave, by name of what has trimmers.
        times: seconds a batch of every contender, round by round.
    """

    dtype: str
    batch: int
    flop_ratios: dict[str, float] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Complete rounds."""
        return min((len(times) for times in self.times.values()), default=0)

    def speedup(self, name: str, over: str = REFERENCE) -> Comparison:
        """How many times faster one contender is than another."""
        return compare(self.times[over], self.times[name])


@dataclass
class StackResults(RunResults[StackCell]):
    """Of `vleff bench --stack`."""

    def as_json(self) -> dict[str, Any]:
        """Everything, with the speedups over eager fp32 beside the times."""
        content = super().as_json() | {"flop_ratio_wanted": FLOP_RATIO, "zeros": ZEROS}
        for stored, cell in zip(content["cells"], self.cells, strict=True):
            if cell.rounds:
                stored["speedup"] = {name: asdict(cell.speedup(name)) for name in cell.times if name != REFERENCE}
        return content
