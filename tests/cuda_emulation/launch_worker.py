"""Calls an emulated function once in every schedule: launch_worker.py LIBRARY PTX INPUTS RESULTS.

INPUTS is an .npz file of `launching.py`: bytes of tensors by their names and "options" as JSON. RESULTS gets the
bytes of each result in each schedule ("out 0", "out 1", ...) and "statistics" as JSON.
"""

import ctypes
import json
import sys
from typing import Any

import numpy as np
from device import SCHEDULES, Device

NUMBERS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "bool": ctypes.c_bool}


def struct_of(fields: list, addresses: dict[str, int]) -> ctypes.Structure:
    """The C struct of these fields, laid out as the compiler does."""

    def converted(kind: str, value: Any) -> tuple[type, Any]:
        if kind == "struct":
            inner = struct_of(value, addresses)
            return type(inner), inner
        if kind == "pointer":
            name, first_byte = value
            return ctypes.c_void_p, None if name is None else addresses[name] + first_byte
        return NUMBERS[kind], value

    members = [converted(*field) for field in fields]
    names = [f"field{number}" for number in range(len(members))]
    layout = list(zip(names, [kind for kind, _ in members], strict=True))
    structure = type("Struct", (ctypes.Structure,), {"_fields_": layout})
    return structure(*[value for _, value in members])


def main(library: str, ptx: str, inputs_file: str, results_file: str) -> None:
    inputs = dict(np.load(inputs_file))
    options = json.loads(inputs.pop("options").item())
    device = Device(library, ptx, options["shared_limit"])
    results, statistics = {}, []
    for number, schedule in enumerate(SCHEDULES):
        device.set_schedule(schedule)
        with device.memory() as memory:
            addresses = {name: memory.copy_of(array) for name, array in inputs.items()}
            addresses |= {name: memory.allocate(size) for name, size in options["result_bytes"].items()}
            problem = struct_of(options["problem"], addresses)
            error = device.functions[options["function"]](ctypes.byref(problem), None)
            if error:
                sys.exit(f"CUDA error {error}")
            for name, size in options["result_bytes"].items():
                results[f"{name} {number}"] = memory.read(addresses[name], size)
        statistics.append(device.take_statistics())
    np.savez(results_file, statistics=json.dumps(statistics), **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
