"""Loads the compiled library, which registers the ops `torch.ops.vleff.*`."""

import json
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.abi3.so")


def load() -> None:
    """Registers the compiled ops with torch.

    Raises:
        ImportError: the library was not built, or the installed torch cannot load it.
        RuntimeError: the environment variable VLEFF_CPU_ISA names no instruction-set level of this processor.
    """
    if not LIBRARY.exists():
        raise ImportError(
            f"vleff's compiled library is missing: expected the file {LIBRARY}. Install the package by "
            "`pip install .`, or build in the source tree by `python setup.py build_ext --inplace`."
        )
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(
            f"vleff's compiled library does not load into torch {torch.__version__} (vleff needs torch 2.13 or "
            f"newer): {error}"
        ) from error
    torch.ops.vleff.cpu_isa()  # a wrong VLEFF_CPU_ISA is reported here, not by the first op


load()
# the types of devices for which kernels were compiled
DEVICES = ("cpu", "cuda") if json.loads(torch.ops.vleff.build_info())["cuda"] else ("cpu",)
