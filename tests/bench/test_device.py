"""`pytest benchmarks --device`: where benchmarks run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vleff.self_test.targets import gpu_problem_here

ROOT = Path(__file__).parents[2]
CASE = "benchmarks/bench_token_gather_attention.py::test_forward[64 x 40 tokens-fp32]"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    # as an xdist worker's child, pytest-benchmark would not measure
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_benchmarks_run_on_the_cpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = run(CASE, "--benchmark-only", f"--benchmark-json={report}")
    assert result.returncode == 0, result.stdout
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert benchmark["extra_info"]["machine"]["device"] == "CPU"
    assert list(benchmark["extra_info"]["against"]) == ["SDPA"]


def test_without_a_gpu_cuda_is_one_clear_error() -> None:
    problem = gpu_problem_here()
    if not problem:
        pytest.skip("here is a GPU")
    result = run("benchmarks", "--benchmark-only", "--device", "cuda")
    assert result.returncode == 4
    assert (result.stdout + result.stderr).strip() == f"ERROR: --device cuda: {problem}"


def test_unknown_device_is_refused() -> None:
    result = run(CASE, "--device", "tpu")
    assert result.returncode == 4
    assert "invalid choice: 'tpu'" in result.stderr
