"""Interleaved comparison on top of pytest-benchmark.

    pytest benchmarks --benchmark-only

Each benchmark compares one contender of vleff with its baselines and never fails for being slow: a ratio on a
shared machine is a measurement, not a test. It does fail when outputs do not match.

With `--device cuda` those that use the fixture `device` run on the GPU, and the others are skipped.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from vleff.bench import engines
from vleff.bench.inputs import Batch
from vleff.bench.matching import match, reference_outputs
from vleff.bench.results import machine
from vleff.bench.timing import MINIMUM_ROUNDS, compare, seconds
from vleff.self_test.targets import gpu_problem_here

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAXIMUM_ROUNDS = 200
GPU_CALLS = 20  # of a round
GPU_BUDGET = 1.0  # seconds, in which a GPU does many rounds

Function = Callable[[], object]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--device cpu|cuda"""
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where benchmarks run")


def pytest_configure(config: pytest.Config) -> None:
    """Says at once if there is no GPU to measure."""
    if config.getoption("--device") == "cuda" and (problem := gpu_problem_here()):
        raise pytest.UsageError(f"--device cuda: {problem}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the GPU, skips what measures the CPU alone."""
    if config.getoption("--device") == "cpu":
        return
    for item in items:
        if item.path.parent == Path(__file__).parent and "device" not in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="measures what runs on the CPU only"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the benchmark runs: `--device`."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """fp32, then bf16."""
    return DTYPES[request.param]


@pytest.fixture
def interleaved(benchmark, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Times a contender and its baselines in turns: `interleaved(ours, {"SDPA": baseline}, ...)`.

    pytest-benchmark times `ours` and reports it as always. Before each of its rounds the baselines run and
    are timed; `extra_info` gets, for each, its median in milliseconds, the speedup over it, the 95 % interval
    and the target. On the GPU a round is a CUDA graph of 20 calls, so that kernels are timed and not the host that
    starts them; what cannot be captured is called 20 times, and named in `extra_info`.
    """
    device = request.config.getoption("--device")

    def measure(
        ours: Function,
        baselines: Mapping[str, Function],
        targets: Mapping[str, float | None] | None = None,
        budget: float = 8.0,
        flops: int | None = None,
        whole: bool = False,
    ) -> None:
        """Measures for about `budget` seconds, and at least six rounds.

        Args:
            ours: what vleff does.
            baselines: what it is compared with, by name.
            targets: the speedup to reach over a baseline.
            budget: seconds.
            flops: floating point operations of `ours`, for a rate in GF/s.
            whole: whether a call is a whole model's: on the GPU timed alone, with what the host does for it.
        """
        calls = 1
        if device == "cuda" and whole:
            ours = _synchronized(ours)
            baselines = {name: _synchronized(function) for name, function in baselines.items()}
        elif device == "cuda":
            calls, budget, targets = GPU_CALLS, min(budget, GPU_BUDGET), None  # which are the CPU's
            captured = {name: _captured(function) for name, function in {"": ours, **baselines}.items()}
            not_captured = [name or "vleff" for name, (_, is_graph) in captured.items() if not is_graph]
            ours, *others = (_synchronized(run) for run, _ in captured.values())
            baselines = dict(zip(baselines, others, strict=True))
            benchmark.extra_info["calls"] = {"of a round": calls, "not captured": not_captured}
        times: dict[str, list[float]] = {name: [] for name in baselines}

        def time_baselines() -> None:
            for name, function in baselines.items():
                times[name].append(seconds(function))

        for function in (ours, *baselines.values()):
            function()
        round_cost = sum(seconds(function) for function in (ours, *baselines.values()))
        rounds = max(MINIMUM_ROUNDS, min(MAXIMUM_ROUNDS, int(budget / round_cost)))
        benchmark.pedantic(ours, setup=time_baselines, rounds=rounds, iterations=1)
        if benchmark.disabled:
            return
        own_times = benchmark.stats.stats.data
        benchmark.extra_info |= {"machine": machine(device), "milliseconds": _median_milliseconds(own_times, calls)}
        if flops is not None:
            benchmark.extra_info["gigaflops"] = flops / benchmark.extra_info["milliseconds"] / 1e6
        benchmark.extra_info["against"] = {
            name: {
                "milliseconds": _median_milliseconds(times[name], calls),
                **asdict(compare(times[name], own_times)),
                "target": (targets or {}).get(name),
            }
            for name in baselines
        }

    return measure


@pytest.fixture
def against_engines(interleaved: Callable[..., None]) -> Callable[..., None]:
    """Times an accelerated model and the dense engines: `against_engines(model, batches, dtype, targets)`."""

    def measure(
        model: nn.Module,
        batches: list[Batch],
        dtype: torch.dtype,
        targets: dict[str, float],
        others: tuple[str, ...] = (),
        budget: float = 8.0,
    ) -> None:
        """Measures for about `budget` seconds, after a comparison of the outputs.

        Args:
            model: the plain model in `dtype`.
            batches: what one round runs.
            targets: the speedup to reach over an engine, "eager" among them.
            others: engines of `vleff bench` to compare with, where they can run the model.
        """
        example = batches[0].inputs
        runners = {"eager": engines.dense(model, example)}
        ours = engines.vleff(model, example)
        outputs = {"eager": _outputs(runners["eager"], batches)}
        for name in others:
            try:
                runner = engines.OTHERS[name](model, example)
                outputs[name] = _outputs(runner, batches)
                runners[name] = runner
            except Exception as error:
                print(f"not compared with {name}: {engines.reason(error)}")
        result = match(batches, outputs["eager"], _outputs(ours, batches), reference_outputs(model, batches), dtype)
        assert result.ok, f"outputs differ from eager's: {result}"
        del outputs
        baselines = {name: partial(_outputs, run, batches) for name, run in runners.items()}
        interleaved(partial(_outputs, ours, batches), baselines, targets, budget)

    return measure


def _outputs(run: engines.Engine, batches: list[Batch]) -> list[engines.HiddenStates]:
    return [run(batch.inputs) for batch in batches]


def _synchronized(function: Function) -> Function:
    def run() -> object:
        result = function()
        torch.cuda.synchronize()
        return result

    return run


def _captured(function: Function) -> tuple[Function, bool]:
    """GPU_CALLS calls as one function, and whether it replays a CUDA graph."""

    def call() -> None:
        for _ in range(GPU_CALLS):
            function()

    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        return call, False
    return graph.replay, True


def _median_milliseconds(times: list[float], calls: int) -> float:
    return float(torch.tensor(times, dtype=torch.float64).quantile(0.5)) * 1e3 / calls
