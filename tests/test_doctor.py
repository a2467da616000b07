import os
import subprocess
import sys

import pytest
import torch

from vleff import doctor


def by_name() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.collect()}


def test_report_is_true_of_this_machine() -> None:
    checks = by_name()
    assert checks["compiled library"].status == "ok"
    assert torch.__version__ in checks["torch"].detail
    for level in torch.ops.vleff.cpu_isa_levels():
        assert level in checks["instruction sets"].detail
    assert f"{torch.get_num_threads()} of {os.cpu_count()}" in checks["threads"].detail


def test_lower_level_is_a_warning_that_names_the_way_back(cpu_isa: str) -> None:
    check = by_name()["instruction sets"]
    highest = torch.ops.vleff.cpu_isa_levels()[-1]
    assert f"used {cpu_isa}" in check.detail
    assert (check.status == "ok") == (cpu_isa == highest)
    assert (highest in check.hint) == (cpu_isa != highest)


def test_missing_part_says_what_for_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.OPTIONAL_PARTS, "no-such-package", ("nothing", "pip install nothing"))
    check = by_name()["no-such-package"]
    assert (check.status, check.hint) == ("warning", "pip install nothing")
    assert "needed for nothing" in check.detail


def test_unchecked_version_is_a_warning() -> None:
    check = doctor._version("torch", ("1.0",))
    assert check.status == "warning"
    assert "torch==1.0.*" in check.hint


def test_command_prints_every_check() -> None:
    result = subprocess.run([sys.executable, "-m", "vleff.cli", "doctor"], capture_output=True, text=True, check=True)
    for name in by_name():
        assert name in result.stdout
