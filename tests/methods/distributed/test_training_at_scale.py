"""SmartTrim, DiDE and lottery training in two processes, by Trainer, DistributedDataParallel and fully_shard."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from methods.distributed.students import STEPPED, TRAINED, trainer_for

HERE, TESTS = Path(__file__).parent, Path(__file__).parents[2]


def torchrun(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(HERE / script), *arguments], capture_output=True, text=True, env=environment, timeout=600
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for method in TRAINED:  # each run ends with a kill
        torchrun("train_worker.py", str(folder))
        assert (folder / f"{method} was killed").exists()
    done = torchrun("train_worker.py", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"weights-{rank}.pt")


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("method", TRAINED)
def test_killed_and_resumed_ends_with_the_same_weights(method: str, trained: Path) -> None:
    expected = weights(trained / "whole" / method)
    assert_equal(weights(trained / "killed" / method), expected)
    for kind in ("whole", "killed"):
        assert_equal(weights(trained / kind / method, rank=1), expected)


@pytest.mark.parametrize("method", ["dide", "lottery"])  # SmartTrim draws, and its cost is no mean over samples
def test_the_trainer_in_two_processes_has_the_losses_of_one(method: str, trained: Path, tmp_path: Path) -> None:
    one = trainer_for(method, tmp_path, 8)
    one.train()
    found = json.loads((trained / "whole" / method / "log-0.json").read_text())
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (found, one.state.log_history)]
    assert len(losses[1]) > 3
    torch.testing.assert_close(*losses, rtol=1e-3, atol=2e-3)
    for name, value in weights(trained / "whole" / method).items():
        torch.testing.assert_close(value, one.model.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_steps_of_two_processes_are_those_of_one() -> None:
    done = torchrun("steps_worker.py")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [f"{method} {kind}" for method in STEPPED for kind in ("DDP", "fully_shard")]
