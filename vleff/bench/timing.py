"""Interleaved measurement, and what may be concluded from it.

A machine's speed drifts, and other work disturbs it. Contenders therefore take turns, round after round, and
are compared by ratios: whatever slows a round down slows all contenders in it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# A distribution-free 95 % interval of a median needs six samples: 2 * 0.5**6 = 3 % lie outside their range.
MINIMUM_ROUNDS = 6


@dataclass(frozen=True)
class Comparison:
    """How many times faster a contender is than a baseline.

    Attributes:
        speedup: ratio of the medians, baseline over contender.
        low, high: its 95 % interval, None below `MINIMUM_ROUNDS` rounds.
        rounds: how many rounds were measured.
    """

    speedup: float
    low: float | None
    high: float | None
    rounds: int


def measure_rounds(
    contenders: Mapping[str, Callable[[], object]],
    budget: float,
    minimum_rounds: int = MINIMUM_ROUNDS,
    maximum_rounds: int = 100,
) -> Iterator[dict[str, float]]:
    """Yields round after round the seconds that each contender took, until the budget is used up.

    In each round every contender runs once. The order rotates, so that none always runs first.

    Args:
        contenders: the functions to time, by name.
        budget: seconds after which no further round starts, once `minimum_rounds` are measured.
        minimum_rounds: measured even if they take longer than the budget.
        maximum_rounds: where measurement stops although budget is left.

    Raises:
        ValueError: no contenders, or a budget that is not positive.
    """
    if not contenders:
        raise ValueError("contenders: expected at least one function to time, got none")
    if not budget > 0:
        raise ValueError(f"budget: expected a positive number of seconds, got {budget}")
    names = list(contenders)
    start = time.perf_counter()
    for round_number in range(maximum_rounds):
        if round_number >= minimum_rounds and time.perf_counter() - start >= budget:
            return
        shift = round_number % len(names)
        yield {name: seconds(contenders[name]) for name in names[shift:] + names[:shift]}


def seconds(function: Callable[[], object]) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(baseline: Sequence[float], contender: Sequence[float], resamples: int = 10_000) -> Comparison:
    """Compares the times of two contenders that were measured in the same rounds.

    The interval is the 2.5th to 97.5th percentile of the ratio of medians when whole rounds are drawn with
    replacement (paired bootstrap), with a fixed seed: the same times give the same interval.

    Raises:
        ValueError: no times, or not equally many.
    """
    if len(baseline) != len(contender) or len(baseline) == 0:
        raise ValueError(
            "baseline and contender: expected equally many times, at least one, got "
            f"{len(baseline)} and {len(contender)}"
        )
    times = np.stack([np.asarray(baseline, dtype=float), np.asarray(contender, dtype=float)])
    rounds = times.shape[1]
    speedup = float(np.divide(*np.median(times, axis=1)))
    if rounds < MINIMUM_ROUNDS:
        return Comparison(speedup, None, None, rounds)
    drawn = np.random.default_rng(0).integers(rounds, size=(resamples, rounds))
    baselines, contenders = np.median(times[:, drawn], axis=2)
    low, high = np.percentile(baselines / contenders, [2.5, 97.5])
    return Comparison(speedup, float(low), float(high), rounds)
