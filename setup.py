"""Builds the compiled parts by CMake and Ninja; everything else is in pyproject.toml.

Environment: VLEFF_CUDA=auto|0|1, VLEFF_CUDA_ARCHS="80;90", CUDA_HOME (see CMakeLists.txt), VLEFF_DEV=1 (also build
vleff._dev, the kernels over NumPy arrays, for tests), VLEFF_SANITIZE=address,undefined, MAX_JOBS.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
WITH_DEV = os.environ.get("VLEFF_DEV", "0") == "1"


class CMakeBuild(build_ext):
    """One CMake target per extension, named like the extension's last part."""

    def build_extensions(self) -> None:
        self.cmake_folder = Path(self.build_temp).resolve()
        self.cmake_folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cmake", *self.configuration()], check=True)
        super().build_extensions()

    def configuration(self) -> list[str]:
        from torch.utils import cpp_extension

        ninja = shutil.which("ninja")
        if ninja is None:
            raise RuntimeError("building vleff needs ninja on PATH: pip install ninja")
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "VLEFF_TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
            "VLEFF_TORCH_LIBRARY_DIR": cpp_extension.library_paths()[0],
            "VLEFF_CUDA": os.environ.get("VLEFF_CUDA", "auto"),
            "VLEFF_CUDA_ARCHS": os.environ.get("VLEFF_CUDA_ARCHS", "80;90"),
            "VLEFF_SANITIZE": os.environ.get("VLEFF_SANITIZE", ""),
            "VLEFF_DEV": "ON" if WITH_DEV else "OFF",
        }
        if WITH_DEV:
            import pybind11

            options |= {"pybind11_DIR": pybind11.get_cmake_dir(), "Python_EXECUTABLE": sys.executable}
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        return ["-S", str(ROOT), "-B", str(self.cmake_folder), "-G", "Ninja", *definitions]

    def build_extension(self, extension: Extension) -> None:
        target = extension.name.rpartition(".")[2]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        command = ["cmake", "--build", str(self.cmake_folder), "--target", target, "--parallel", jobs]
        subprocess.run(command, check=True)
        output = Path(self.get_ext_fullpath(extension.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)  # a process may have the old file mapped
        shutil.copy2(self.cmake_folder / output.name, output)


class CleanBuild(build):
    """Drops what an earlier build left, which setuptools would put into the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class StableWheel(bdist_wheel):
    """One wheel for every CPython from 3.10 on: the library speaks torch's stable ABI and no Python ABI at all."""

    def finalize_options(self) -> None:
        self.py_limited_api = False if WITH_DEV else "cp310"
        super().finalize_options()


extensions = [Extension("vleff._C", sources=[], py_limited_api=True)]
if WITH_DEV:
    extensions.append(Extension("vleff._dev", sources=[]))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": CMakeBuild, "build": CleanBuild, "bdist_wheel": StableWheel},
)
