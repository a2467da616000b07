"""What all tests share: seeds, threads, instruction-set levels, poisoned memory."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import vleff._library  # noqa: F401  registers torch.ops.vleff

TESTS = Path(__file__).parent
THREADS = 2

# With AMX oneDNN sums bfloat16 in an order that depends on the number of rows (docs/accelerate.md); tests compare bits.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# The same examples in every run; fixtures here hold for all examples of a test, so sharing them is right.
settings.register_profile(
    "vleff",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("vleff")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same seed and number of threads."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _without_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests but those in tests/gpu run as where there is none: what trains or generates would move there."""
    if torch.cuda.is_available() and not request.path.is_relative_to(TESTS / "gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that a test starts
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(params=torch.ops.vleff.cpu_isa_levels())
def cpu_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the kernels of each instruction-set level that this processor has."""
    before = torch.ops.vleff.cpu_isa()
    torch.ops.vleff.set_cpu_isa(request.param)
    yield request.param
    torch.ops.vleff.set_cpu_isa(before)


@pytest.fixture
def with_threads() -> Callable:
    """with_threads(n, function, *args) calls the function with n threads."""

    def call(threads: int, function: Callable, *args: object) -> object:
        torch.set_num_threads(threads)
        try:
            return function(*args)
        finally:
            torch.set_num_threads(THREADS)

    return call


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills all memory that torch allocates without values, in compiled ops too: NaN, or 0xFF as bytes."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
