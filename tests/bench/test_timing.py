import numpy as np
import pytest

from vleff.bench.timing import MINIMUM_ROUNDS, compare, measure_rounds


def noisy_times(generator: np.random.Generator, rounds: int, speedup: float) -> tuple[np.ndarray, np.ndarray]:
    """Times of a machine whose speed drifts between rounds, and which disturbs one call in ten."""
    drift = generator.lognormal(0, 0.3, rounds)
    noise = generator.lognormal(0, 0.05, (2, rounds)) * np.where(generator.random((2, rounds)) < 0.1, 1.5, 1)
    return drift * noise[0] * speedup, drift * noise[1]


@pytest.mark.parametrize("rounds", [6, 10, 40])
def test_interval_covers_the_true_ratio(rounds: int) -> None:
    generator = np.random.default_rng(7)
    comparisons = [compare(*noisy_times(generator, rounds, 2.5), resamples=500) for _ in range(300)]
    covered = np.mean([c.low <= 2.5 <= c.high for c in comparisons])
    assert covered > 0.9
    assert np.median([c.speedup for c in comparisons]) == pytest.approx(2.5, rel=0.05)


def test_interval_narrows_with_rounds_and_is_reproducible() -> None:
    few = compare(*noisy_times(np.random.default_rng(1), 8, 1.4))
    times = noisy_times(np.random.default_rng(1), 200, 1.4)
    many = compare(*times)
    assert many.high - many.low < few.high - few.low
    assert compare(*times) == many
    assert many.rounds == 200


def test_speedup_is_the_ratio_of_medians() -> None:
    assert compare([2.0, 100.0, 4.0], [1.0, 2.0, 50.0]).speedup == 2.0


def test_few_rounds_give_no_interval() -> None:
    comparison = compare([2.0] * (MINIMUM_ROUNDS - 1), [1.0] * (MINIMUM_ROUNDS - 1))
    assert (comparison.low, comparison.high) == (None, None)


@pytest.mark.parametrize("times", [([], []), ([1.0, 2.0], [1.0])])
def test_unpaired_times_are_refused(times: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="equally many"):
        compare(*times)


def test_contenders_take_turns_and_none_is_always_first() -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = list(measure_rounds(contenders, budget=1e-9))
    assert len(rounds) == MINIMUM_ROUNDS
    assert all(set(times) == set("abc") and min(times.values()) >= 0 for times in rounds)
    assert "".join(calls) == "abcbcacab" * 2


def test_budget_ends_the_measurement() -> None:
    assert len(list(measure_rounds({"a": lambda: None}, budget=60, maximum_rounds=9))) == 9
    assert len(list(measure_rounds({"a": lambda: None}, budget=1e-9, minimum_rounds=2))) == 2


@pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
def test_bad_budget_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget: expected a positive number"):
        next(measure_rounds({"a": lambda: None}, budget))


def test_no_contenders_are_refused() -> None:
    with pytest.raises(ValueError, match="contenders"):
        next(measure_rounds({}, 1.0))
