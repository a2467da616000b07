"""Functions of emulated libraries, called with a struct, in every schedule, in a process of their own."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_cases import DTYPES  # in the order of vleff::DataType
from cuda_kernels import MOST_SHARED_BYTES
from torch import Tensor

from .building import EmulatedLibrary, run_worker

# A field of a C struct, as JSON: its kind and its value; a struct's value is the list of its fields.
Field = tuple[str, Any]
Results = dict[str, Tensor]
DTYPE_OF = {"float": torch.float32, "__nv_bfloat16": torch.bfloat16, "__half": torch.float16}


class EmulationError(Exception):
    """The emulator has found a mistake of a kernel, or the kernel was not started."""


# What shows a mistake that was put into a kernel: a report of the emulator, or a result that is off.
SHOWN = (EmulationError, AssertionError)


def bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def storage_of(tensor: Tensor) -> np.ndarray:
    """The tensor's memory up to its last element: what lies behind that must not be read."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    length = tensor.storage_offset() + last + 1 if tensor.numel() else 0
    return bytes_of(tensor.as_strided((length,), (1,), 0))


def int32(value: int) -> Field:
    return "int32", value


def int64(value: int) -> Field:
    return "int64", value


def float32(value: float) -> Field:
    return "float32", value


def boolean(value: bool) -> Field:
    return "bool", value


def struct(*fields: Field) -> Field:
    return "struct", fields


def data_type(dtype: torch.dtype) -> Field:
    """vleff::DataType"""
    return int32(DTYPES.index(dtype))


def pointer(name: str | None, first_byte: int = 0) -> Field:
    """Into the input or result of this name; null for None."""
    return "pointer", (name, first_byte)


def head_rows(name: str, rows: Tensor) -> Field:
    """vleff::HeadRows of an input [rows, heads, head_dim]"""
    first_byte = rows.storage_offset() * rows.element_size()
    return struct(pointer(name, first_byte), int64(rows.stride(0)), int64(rows.stride(1)))


def launch(
    build: EmulatedLibrary,
    function: str,
    problem: Sequence[Field],
    inputs: Mapping[str, Tensor],
    results: Mapping[str, tuple[Sequence[int], torch.dtype]],
    shared_limit: int = MOST_SHARED_BYTES,
) -> tuple[list[Results], list[dict[str, int]]]:
    """Calls `function(&problem, null)` in each schedule.

    Args:
        problem: the struct's fields.
        inputs: what its pointers name, of any strides; nothing behind their last elements can be read.
        results: shapes and dtypes of the other names; their memory holds NaN at first.
        shared_limit: bytes of shared memory that a block may have.

    Returns:
        the results of each schedule, and what the kernels have done in it.

    Raises:
        EmulationError: with what the emulator reports.
    """
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, (shape, dtype) in results.items()}
    options = {"function": function, "problem": problem, "shared_limit": shared_limit, "result_bytes": sizes}
    arrays = {name: storage_of(tensor) for name, tensor in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        inputs_file, results_file = Path(folder, "inputs.npz"), Path(folder, "results.npz")
        np.savez(inputs_file, options=json.dumps(options), **arrays)
        done = run_worker("launch_worker.py", build.library, build.ptx, inputs_file, results_file)
        if done.returncode:
            raise EmulationError(done.stderr)
        loaded: dict[str, Any] = dict(np.load(results_file))
    statistics = json.loads(loaded["statistics"].item())

    def result(name: str, schedule: int) -> Tensor:
        target = torch.empty(tuple(results[name][0]), dtype=results[name][1])
        bytes_of(target)[:] = loaded[f"{name} {schedule}"]
        return target

    return [{name: result(name, i) for name in results} for i in range(len(statistics))], statistics


def launch_alike(
    build: EmulatedLibrary,
    function: str,
    problem: Sequence[Field],
    inputs: Mapping[str, Tensor],
    results: Mapping[str, tuple[Sequence[int], torch.dtype]],
    alike: bool = True,
    **options: Any,
) -> Results:
    """The results, which every schedule must have to the bit, without bank conflicts of matrix loads.

    Args:
        alike: False where it is no mistake that results depend on the schedule; then the first one's are returned.

    Raises:
        EmulationError: with what the emulator reports, or with what of this is not so.
    """
    of_schedules, statistics = launch(build, function, problem, inputs, results, **options)
    for found in of_schedules[1:] if alike else []:
        for name, tensor in found.items():
            if not np.array_equal(bytes_of(tensor), bytes_of(of_schedules[0][name])):
                raise EmulationError(f"{name} depends on the order of threads")
    for counts in statistics:
        if counts["matrix_load_passes"] != counts["matrix_load_passes_ideal"]:
            raise EmulationError(f"bank conflicts of matrix loads: {counts}")
    return of_schedules[0]
