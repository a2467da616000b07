"""Compiles kernels by nvcc and joins them with the emulator into a library that runs them on the CPU."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cuda_kernels import CSRC, toolkit

EMULATOR = Path(__file__).parent / "emulator"
BUILDS = Path(__file__).parents[2] / "build" / "cuda_emulation"
EMULATOR_OPTIONS = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"]
EMULATOR_OPTIONS += ["-ftls-model=initial-exec"]
KERNEL_OPTIONS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC"]


class EmulatedLibrary(NamedTuple):
    library: Path
    ptx: Path


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def digest(*parts: str | bytes) -> str:
    joined = b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def with_includes(source: Path) -> list[Path]:
    """The source and all files that it includes by relative paths, directly or not."""
    found = [source.resolve()]
    for file in found:
        for name in re.findall(r'^#include "([^"]+)"', file.read_text(), re.MULTILINE):
            included = (file.parent / name).resolve()
            if included not in found:
                found.append(included)
    return found


def processor() -> str:
    """Objects are compiled for this processor and must not be taken for another's."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def build_emulator() -> list[Path]:
    """The emulator's objects, compiled once for all kernels and kept until their sources change."""
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    headers = [path.read_bytes() for path in sorted(EMULATOR.glob("*.h"))]
    folder = BUILDS / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    include = f"-I{toolkit() / 'include'}"

    def compile_source(source: Path) -> Path:
        key = digest(version, processor(), *EMULATOR_OPTIONS, *headers, source.read_bytes())
        target = folder / f"{source.stem}-{key}.o"
        if not target.exists():
            part = target.with_suffix(f".{os.getpid()}.o")
            run(compiler, *EMULATOR_OPTIONS, include, "-c", source, "-o", part)
            part.replace(target)
        return target

    largest_first = sorted(EMULATOR.glob("*.cpp"), key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_source, largest_first))


def build_kernels(source: Path, architecture: str = "compute_80") -> EmulatedLibrary:
    """A library with the source's functions, whose kernels the emulator runs from their PTX.

    Kept by the contents of the source and of what it includes.
    """
    objects = build_emulator()
    nvcc = toolkit() / "bin" / "nvcc"
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    key = digest(version, architecture, *map(str, objects), *(file.read_bytes() for file in with_includes(source)))
    folder = BUILDS / f"{source.stem}-{architecture}-{key}"
    result = EmulatedLibrary(folder / "lib.so", folder / f"{source.stem}.ptx")
    if not result.library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        target = f"-arch={architecture}", f"-code={architecture}"  # PTX alone: no machine code is made
        keep = "--keep", f"--keep-dir={folder}"
        run(nvcc, *KERNEL_OPTIONS, *target, *keep, "-c", source, "-o", folder / "kernel.o")
        part = folder / f"lib.{os.getpid()}.so"
        run("g++", "-shared", "-Wl,-Bsymbolic", folder / "kernel.o", *objects, "-lpthread", "-o", part)
        for intermediate in [*folder.glob("*.ii"), *folder.glob("*cudafe*"), *folder.glob("*.fatbin*")]:
            intermediate.unlink()
        part.replace(result.library)
    return result


class Change(NamedTuple):
    """In `file` the text `old`, which stands there once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


def build_changed(source: str, replaced: dict[str, str], change: Change | None) -> EmulatedLibrary:
    """The kernels of `source`, with other contents of some files of their folder and, unless None, one change."""
    name = "none" if change is None else digest(*change)
    folder = BUILDS / "changed" / f"{Path(source).stem}-{digest(json.dumps(replaced))}-{name}"
    shutil.copytree(CSRC / "kernels", folder / "kernels", dirs_exist_ok=True)
    kernels = folder / "kernels" / "cuda"
    for file, text in replaced.items():
        (kernels / file).write_text(text)
    if change is not None:
        text = (kernels / change.file).read_text()
        if text.count(change.old) != 1:
            raise ValueError(f"{change.name}: expected once in {change.file}, found {text.count(change.old)} times")
        (kernels / change.file).write_text(text.replace(change.old, change.new))
    return build_kernels(kernels / source)


def run_worker(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs one of this folder's programs in a process of its own: a kernel that goes wrong may end it."""
    command = [sys.executable, Path(__file__).with_name(name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def is_full_run() -> bool:
    """Whether the long tier runs, as .ci/full does: every architecture, every mutation."""
    return os.environ.get("VLEFF_CUDA_EMULATION") == "full"
