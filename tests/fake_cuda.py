"""Fake CUDA tensors on a machine without a GPU: shapes, dtypes and devices of what a model computes, without values.

What reads a value raises torch's DataDependentOutputException, and what mixes devices fails. A CPU build of torch has
no device guard for CUDA and refuses to cast such tensors; torch's own fake guard, which remembers a device number and
does nothing, is compiled and registered in its place. Backward needs a real device.
"""

import functools
import subprocess
import tempfile
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

GUARD = """
#include <c10/core/impl/FakeGuardImpl.h>
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>)
}
"""


@functools.cache
def _register_guard() -> None:
    if torch.backends.cuda.is_built():
        return
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-", f"-I{root}/include"]
        command += [f"-L{root}/lib", "-lc10", "-o", str(library)]
        subprocess.run(command, input=GUARD, text=True, check=True)
        torch.ops.load_library(library)


def fake_cuda(**options: bool) -> FakeTensorMode:
    """A mode in which tensors can be moved to "cuda"; `options` as of FakeTensorMode."""
    _register_guard()
    return FakeTensorMode(**options)
