"""The emulated device in Python: memory with guard pages, schedules, statistics. Needs numpy alone."""

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """Which of several threads that could go on goes on: "forward", "reverse" or "random", chosen by the seed."""

    name: str
    seed: int = 0


SCHEDULES = (Schedule("forward"), Schedule("reverse"), Schedule("random", 1), Schedule("random", 2))


class Device:
    """A library of emulated kernels.

    Args:
        library, ptx: files made by `building.build_kernels`.
        shared_limit: bytes of shared memory that a block may have.
    """

    def __init__(self, library: str, ptx: str, shared_limit: int) -> None:
        self.functions = ctypes.CDLL(library)
        self.functions.emulation_allocate.restype = ctypes.c_void_p
        self.functions.emulation_allocate.argtypes = [ctypes.c_size_t]
        self.functions.emulation_free.argtypes = [ctypes.c_void_p]
        self.functions.emulation_take_statistics.restype = ctypes.c_char_p
        self.functions.emulation_set_schedule.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self.functions.emulation_start(ptx.encode(), shared_limit)

    def set_schedule(self, schedule: Schedule) -> None:
        self.functions.emulation_set_schedule(["forward", "reverse", "random"].index(schedule.name), schedule.seed)

    def take_statistics(self) -> dict[str, int]:
        """What kernels have done since the last call."""
        return json.loads(self.functions.emulation_take_statistics())

    @contextmanager
    def memory(self) -> Iterator["Memory"]:
        """Memory that is checked and freed at the end of the block."""
        memory = Memory(self)
        yield memory
        memory.free()


class Memory:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.inputs: list[tuple[int, np.ndarray]] = []
        self.addresses: list[int] = []

    def allocate(self, size: int) -> int:
        """The address of `size` bytes of 0xFF, behind which lies a page that nothing may touch."""
        self.addresses.append(self.device.functions.emulation_allocate(size))
        return self.addresses[-1]

    def copy_of(self, array: np.ndarray) -> int:
        """The address of a copy, which kernels must leave as it is."""
        array = np.ascontiguousarray(array)
        address = self.allocate(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.inputs.append((address, array))
        return address

    @staticmethod
    def read(address: int, size: int) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(address, size), dtype=np.uint8)

    def free(self) -> None:
        for address, array in self.inputs:
            if ctypes.string_at(address, array.nbytes) != array.tobytes():
                raise AssertionError("a kernel wrote to an input")
        for address in self.addresses:
            self.device.functions.emulation_free(address)
