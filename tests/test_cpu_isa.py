"""Instruction-set levels: found, overridden, and each with the same results within rounding."""

import os
import subprocess
import sys

import pytest
import torch

LEVELS = ["baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"]
PROBE = "import vleff._library, torch; print(torch.ops.vleff.cpu_isa())"


def probe(level: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"VLEFF_CPU_ISA": level}
    return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)


def test_levels_start_at_the_portable_one_and_ascend() -> None:
    found = torch.ops.vleff.cpu_isa_levels()
    assert found == LEVELS[: len(found)]
    assert found


def test_default_is_the_highest() -> None:
    assert probe("").stdout.strip() == torch.ops.vleff.cpu_isa_levels()[-1]


@pytest.mark.parametrize("level", torch.ops.vleff.cpu_isa_levels())
def test_environment_chooses(level: str) -> None:
    assert probe(level).stdout.strip() == level


def test_unknown_level_in_the_environment_fails_at_import_with_the_reason() -> None:
    result = probe("avx9")
    assert result.returncode != 0
    assert "VLEFF_CPU_ISA: expected baseline, avx2, avx512, avx512_bf16 or amx_bf16, got 'avx9'" in result.stderr


def test_op_chooses(cpu_isa: str) -> None:
    assert torch.ops.vleff.cpu_isa() == cpu_isa


def test_op_refuses_unknown_levels_and_keeps_the_active_one() -> None:
    before = torch.ops.vleff.cpu_isa()
    with pytest.raises(RuntimeError, match=r"set_cpu_isa: argument 'name': expected a level .*, got 'mmx'"):
        torch.ops.vleff.set_cpu_isa("mmx")
    assert torch.ops.vleff.cpu_isa() == before
