"""Random problems for the CPU kernels under AddressSanitizer and UBSan, at every instruction-set level."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
SECONDS = os.environ.get("VLEFF_FUZZ_SECONDS", "20")
FIRST_SEED = os.environ.get("VLEFF_FUZZ_SEED", "1")


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    # -O2 compiles in half of the time of -O3, and the library may be built with it, too
    options = ["-DVLEFF_FUZZ=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O2"]
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options]
    subprocess.run([*configure, "-DVLEFF_SANITIZE=address,undefined"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    "op",
    [
        "token_gather_attention",
        "masked_linear",
        "head_masked_linear",
        "attention_distillation",
        "copy_attention",
        "vocabulary_log_probs",
        "ragged_lstm",
        "top_words",
        "copy_attention_top",
    ],
)
def test_kernels_survive_random_problems(fuzz_folder: Path, op: str) -> None:
    program = fuzz_folder / f"fuzz_{op}"
    environment = os.environ | {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    run = subprocess.run([program, SECONDS, FIRST_SEED], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "cases passed" in run.stdout
