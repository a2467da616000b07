"""The emulator finds the mistakes that it is there to find, and lets the same kernels without them pass."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from .building import EmulatedLibrary, build_kernels, run_worker

pytestmark = pytest.mark.long

NUMBERS = [float(i) for i in range(64)]
SHARED_BYTES = 256  # of one float a thread

# Each kernel's output, and what the emulator says of the mistake in the other version.
MISTAKES = {
    "reverse": (NUMBERS[::-1], "race: .* no barrier between"),
    "swap_in_warp": ([NUMBERS[i ^ 1] for i in range(64)], "race: .* no barrier between"),
    "write_twice": (NUMBERS[::-1], "race: .* no barrier between"),
    "copy_asynchronously": (NUMBERS, "read before the end of the asynchronous copy"),
    "end_with_copies": (NUMBERS, "ends with asynchronous copies"),
    "read_from": (NUMBERS, "outside of every allocation"),
    "write_from": (NUMBERS, "outside of every allocation"),
    "read_shared_from": (NUMBERS, "access out of bounds: 4 bytes at 256 of shared memory"),
    "divergent_barrier": (NUMBERS, "at different barriers"),
    "divergent_shuffle": ([NUMBERS[i ^ 1] for i in range(64)], "wait for others that will not come|names lanes that"),
    "shuffle_from_outside": (
        [NUMBERS[i ^ 1] if i % 32 < 16 else NUMBERS[i] for i in range(64)],
        "shuffle from a lane that does not take part",
    ),
    "load_pair": ([1.0] * 64, "unaligned access of 8 bytes"),
    "unknown_opcode": (NUMBERS, "an opcode that is not known: nanosleep"),
}


@pytest.fixture(scope="module")
def build() -> EmulatedLibrary:
    return build_kernels(Path(__file__).parent / "kernels" / "mistakes.cu")


def run(build: EmulatedLibrary, name: str, correct: bool, shared_bytes: int = 0) -> CompletedProcess:
    return run_worker("kernel_worker.py", build.library, build.ptx, name, str(int(correct)), str(shared_bytes))


def outcome(build: EmulatedLibrary, name: str, correct: bool, shared_bytes: int = 0) -> dict:
    done = run(build, name, correct, shared_bytes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found(build: EmulatedLibrary, name: str) -> None:
    expected, report = MISTAKES[name]
    shared_bytes = SHARED_BYTES if name == "read_shared_from" else 0
    assert all(output == expected for output in outcome(build, name, True, shared_bytes)["outputs"])
    done = run(build, name, False, shared_bytes)
    assert done.returncode == 1
    assert re.search(report, done.stderr), done.stderr
    assert "PTX line" in done.stderr


def test_what_was_never_written_is_nan(build: EmulatedLibrary) -> None:
    assert all(output == NUMBERS for output in outcome(build, "read_unwritten", True)["outputs"])
    for output in outcome(build, "read_unwritten", False)["outputs"]:
        assert output[7] != output[7] and output[:7] == NUMBERS[:7]


def test_bank_conflicts_are_counted(build: EmulatedLibrary) -> None:
    for correct, passes in ((True, 1), (False, 8)):  # of eight rows: all at once, or one by one
        for counts in outcome(build, "load_matrix", correct)["statistics"]:
            assert counts["matrix_load_passes"] == passes * counts["matrix_load_passes_ideal"] > 0


@pytest.mark.parametrize("shared_bytes, starts", [(48 * 1024, True), (48 * 1024 + 4, False)])
def test_more_shared_memory_must_be_asked_for(build: EmulatedLibrary, shared_bytes: int, starts: bool) -> None:
    done = run(build, "read_shared_from", True, shared_bytes)
    assert (done.returncode == 0) == starts
    assert starts or "CUDA error 1" in done.stderr
