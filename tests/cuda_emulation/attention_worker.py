"""Runs the emulated token_gather_attention once in every schedule: attention_worker.py LIBRARY PTX INPUTS RESULTS.

INPUTS is an .npz file of `attention.py`: bytes of tensors by their names and "options" as JSON. RESULTS gets the
bytes of out, lse and importance of every schedule ("out 0", "out 1", ...) and "statistics" as JSON, or "error".
"""

import ctypes
import json
import sys

import numpy as np
from device import SCHEDULES, Device, Memory

Pointer, Int64 = ctypes.c_void_p, ctypes.c_int64
ELEMENT_BYTES = (4, 2, 2)  # of the data types in their order


class HeadRows(ctypes.Structure):
    _fields_ = [("data", Pointer), ("row_stride", Int64), ("head_stride", Int64)]


class RowIndex(ctypes.Structure):
    _fields_ = [("numbers", Pointer), ("is_int64", ctypes.c_bool)]


class RaggedSide(ctypes.Structure):
    _fields_ = [("offsets", Pointer), ("index", RowIndex), ("stored", Int64), ("total", Int64), ("longest", Int64)]


class AttentionProblem(ctypes.Structure):
    """vleff::cuda::AttentionProblem of csrc/kernels/cuda/token_gather_attention_problem.h"""

    _fields_ = [
        ("type", ctypes.c_int),
        ("batch", Int64),
        ("heads", Int64),
        ("head_dim", Int64),
        ("q", HeadRows),
        ("k", HeadRows),
        ("v", HeadRows),
        ("queries", RaggedSide),
        ("keys", RaggedSide),
        ("head_mask", Pointer),
        ("key_bias", Pointer),
        ("scale", ctypes.c_float),
        ("causal", ctypes.c_bool),
        ("dropout_p", ctypes.c_float),
        ("seed", Pointer),
        ("out", Pointer),
        ("lse", Pointer),
        ("importance", Pointer),
    ]


def problem_of(inputs: dict, options: dict, memory: Memory) -> AttentionProblem:
    def address(name: str) -> int | None:
        return memory.copy_of(inputs[name]) if name in inputs else None

    def head_rows(name: str) -> HeadRows:
        first = options["first"][name] * ELEMENT_BYTES[options["type"]]
        return HeadRows(address(name) + first, *options["strides"][name])

    def side(name: str) -> RaggedSide:
        index = RowIndex(address(f"{name}_index"), options["index_is_int64"].get(name, False))
        return RaggedSide(address(f"{name}_offsets"), index, *options["rows"][name])

    return AttentionProblem(
        type=options["type"],
        **{name: options[name] for name in ("batch", "heads", "head_dim", "scale", "causal", "dropout_p")},
        **{name: head_rows(name) for name in "qkv"},
        queries=side("q"),
        keys=side("k"),
        **{name: address(name) for name in ("head_mask", "key_bias", "seed")},
    )


def main(library: str, ptx: str, inputs_file: str, results_file: str) -> None:
    inputs = dict(np.load(inputs_file))
    options = json.loads(inputs.pop("options").item())
    device = Device(library, ptx, options["shared_limit"])
    results, statistics = {}, []
    for number, schedule in enumerate(SCHEDULES):
        device.set_schedule(schedule)
        with device.memory() as memory:
            problem = problem_of(inputs, options, memory)
            for name, size in options["result_bytes"].items():
                setattr(problem, name, memory.allocate(size))
            error = device.functions.vleff_token_gather_attention_cuda(ctypes.byref(problem), None)
            if error:
                sys.exit(f"CUDA error {error}")
            for name, size in options["result_bytes"].items():
                results[f"{name} {number}"] = memory.read(getattr(problem, name), size)
        statistics.append(device.take_statistics())
    np.savez(results_file, statistics=json.dumps(statistics), **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
