"""What the compiled library is made of: stable symbols, no torch in the kernels, no instruction set that leaks."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import vleff
from vleff import _library

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
WIDE_REGISTER = {"baseline": r"%[yz]mm", "avx2": r"%zmm", "avx512": r"vdpbf16ps"}


def dynamic_symbols(*options: str) -> list[str]:
    command = ["nm", "-D", *options, _library.LIBRARY]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[-1] for line in lines]


def test_kernels_know_no_torch() -> None:
    sources = [path for path in (ROOT / "csrc" / "kernels").rglob("*.*") if path.is_file()]
    assert sources
    for path in sources:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path


def test_library_takes_only_stable_symbols_from_torch() -> None:
    """The stable ABI is a C interface: one build runs on later versions of torch, with or without CUDA."""
    undefined = dynamic_symbols("--undefined-only")
    assert any(name.startswith("aoti_torch") or name.startswith("torch_") for name in undefined)
    unstable = [name for name in undefined if re.match(r"_ZNK?(2at|3c10|5torch)", name)]
    assert not unstable


def test_library_exports_no_kernel() -> None:
    """Two copies in one process, of two versions say, must not mix."""
    assert not [name for name in dynamic_symbols("--defined-only") if "5vleff" in name]


@pytest.fixture(scope="module")
def level_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of each level, compiled as the package compiles them."""
    folder = tmp_path_factory.mktemp("objects")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DVLEFF_FUZZ=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    targets = [f"kernels_{level}" for level in WIDE_REGISTER]
    subprocess.run(["cmake", "--build", folder, "--target", *targets], check=True, capture_output=True)
    return folder


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump of GNU binutils")
@pytest.mark.parametrize("level", WIDE_REGISTER)
def test_level_holds_no_instruction_of_a_higher_one(level_objects: Path, level: str) -> None:
    objects = list(level_objects.glob(f"CMakeFiles/kernels_{level}.dir/**/*.o"))
    assert objects
    for path in objects:
        command = ["objdump", "-d", "--no-show-raw-insn", path]
        assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert not re.search(WIDE_REGISTER[level], assembly), path


@pytest.mark.parametrize("level", WIDE_REGISTER)
def test_level_shares_no_code_with_another(level_objects: Path, level: str) -> None:
    """A weak symbol outside the level's namespace is one the linker may take from any level."""
    for path in level_objects.glob(f"CMakeFiles/kernels_{level}.dir/**/*.o"):
        symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        weak = [line.split()[-1] for line in symbols.splitlines() if re.search(r" [WVu] ", line)]
        mangled = f"{len(level)}{level}"
        assert not [name for name in weak if mangled not in name], path


def configure(folder: Path, cuda: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DVLEFF_CUDA={cuda}"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize("cuda", ["0", "auto"])
def test_build_without_a_cuda_toolkit(tmp_path: Path, cuda: str) -> None:
    result = configure(tmp_path, cuda, CUDA_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "CUDA: not compiled" in result.stdout


def test_demanded_cuda_toolkit_that_is_missing_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    result = configure(tmp_path, "1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "no CUDA toolkit was found" in message
    assert "set CUDA_HOME" in message
    assert "VLEFF_CUDA=0" in message


def test_version_is_the_package_s() -> None:
    assert f'version = "{vleff.__version__}"' in (ROOT / "pyproject.toml").read_text()
