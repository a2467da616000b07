"""Tests that need a GPU; without one they are skipped. What the compiled kernels do there, `tests/cuda_emulation` says
on any machine; here they run, with the C++ of the ops, torch's autograd and whole models around them."""

from pathlib import Path

import pytest
import torch

from vleff.self_test.targets import gpu_problem_here

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is here where no GPU can run it."""
    problem = gpu_problem_here()
    for item in items:
        if problem and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=problem))


@pytest.fixture
def cuda() -> torch.device:
    """The GPU."""
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 convolutions, such as those that make patches, in float32: torch allows tf32 in them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
