"""Products by AMX tiles: registers emulated under a sanitizer, and those of the processor where it has them."""

import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
LEVELS = torch.ops.vleff.cpu_isa_levels()
FLAGS = "-std=c++17 -O1 -Wno-psabi -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16"
EMULATED = "-DVLEFF_EMULATED_TILES -fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.mark.parametrize(
    ("level", "flags"), [("avx512", EMULATED), ("amx_bf16", "-mamx-tile -mamx-bf16")], ids=["emulated", "processor"]
)
def test_products_by_tiles(tmp_path: Path, level: str, flags: str) -> None:
    if level not in LEVELS:
        pytest.skip(f"the processor lacks {level}")
    folder = ROOT / "tests/matmul_tiles"
    command = ["c++", *FLAGS.split(), *flags.split(), "-DVLEFF_ISA=test", f"-I{ROOT / 'csrc'}", f"-I{folder}"]
    command += [str(folder / "check_matmul_tiles.cpp"), "-o", str(tmp_path / "check")]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
