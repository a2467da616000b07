"""Where the ops are tested: every instruction-set level of the processor, and the GPU."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import vleff._library  # noqa: F401  registers torch.ops.vleff
from vleff.machine import gpu

LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Target:
    """A device and, on the CPU, an instruction-set level.

    Attributes:
        name: the level, or "cuda".
        device: where tensors are.
    """

    name: str
    device: torch.device

    @contextmanager
    def active(self) -> Iterator[None]:
        """Ops run here meanwhile."""
        before = torch.ops.vleff.cpu_isa()
        if self.device.type == "cpu":
            torch.ops.vleff.set_cpu_isa(self.name)
        try:
            yield
        finally:
            torch.ops.vleff.set_cpu_isa(before)

    def runs(self, op: str) -> bool:
        """Whether the op of this name has a kernel here."""
        return torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"vleff::{op}", self.device.type.upper())


def find_targets() -> tuple[list[Target], str]:
    """All targets of this machine, and the GPU in words: its name, or why there is none to test."""
    targets = [Target(level, torch.device("cpu")) for level in torch.ops.vleff.cpu_isa_levels()]
    if problem := gpu_problem_here():
        return targets, f"not tested: {problem}"
    return [*targets, Target("cuda", torch.device("cuda"))], gpu()


def gpu_problem_here() -> str:
    """Why the ops cannot run on this machine's GPU, or ""."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return gpu_problem(json.loads(torch.ops.vleff.build_info())["cuda"], capability)


def gpu_problem(compiled_with: str, capability: tuple[int, int] | None) -> str:
    """Why the ops cannot run on the GPU, or "".

    Args:
        compiled_with: the version of CUDA that the library was compiled with, "" without.
        capability: the compute capability of the GPU; None where torch sees none.
    """
    if capability is None:
        return "torch sees no GPU"
    if not compiled_with:
        return "the library was built without CUDA; VLEFF_CUDA=1 pip install . builds it with CUDA"
    if capability < LEAST_CAPABILITY:
        found, least = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
        return f"compute capability: expected {least} or later, got {found}"
    return ""
