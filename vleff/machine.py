"""The machine that measured choices belong to."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The kind of processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())  # the first core's
    name = entries.get("model name", platform.machine())
    family, model = entries.get("cpu family"), entries.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def gpu() -> str:
    """The GPU in use: its name, compute capability and the version of CUDA that torch was built with."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name} (compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda})"
