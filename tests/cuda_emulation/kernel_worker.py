"""Runs a small kernel in every schedule: kernel_worker.py LIBRARY PTX NAME CORRECT(0|1) SHARED_BYTES.

Prints {"outputs": [the output in each schedule], "statistics": [...]} as JSON; the input counts 0, 1, ... 63.
"""

import ctypes
import json
import sys

import numpy as np
from device import SCHEDULES, Device

COUNT, SHARED_LIMIT = 64, 99 * 1024


def main(library: str, ptx: str, name: str, correct: str, shared_bytes: str) -> None:
    device = Device(library, ptx, SHARED_LIMIT)
    function = device.functions[f"run_{name}"]
    function.argtypes = [ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    outputs, statistics = [], []
    for schedule in SCHEDULES:
        device.set_schedule(schedule)
        with device.memory() as memory:
            output = memory.allocate(COUNT * 4)
            source = memory.copy_of(np.arange(COUNT, dtype=np.float32))
            error = function(correct == "1", source, output, int(shared_bytes))
            if error:
                sys.exit(f"CUDA error {error}")
            outputs.append(memory.read(output, COUNT * 4).view(np.float32).tolist())
        statistics.append(device.take_statistics())
    print(json.dumps({"outputs": outputs, "statistics": statistics}))


if __name__ == "__main__":
    main(*sys.argv[1:])
