"""What vleff finds on this machine, what is missing, and how to get it."""

import json
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import torch

from vleff import choices
from vleff.models.registry import CHECKED_VERSIONS

TORCH_CHECKED = ("2.13", "2.14")
OPTIONAL_PARTS = {
    "matplotlib": ("figures of `vleff bench`, `demo` and `smarttrim show`", "pip install 'vleff[bench]'"),
    "pillow": ("photos, as `vleff bench --model vit-base` reads them", "pip install 'vleff[bench]'"),
    "openvino": ("`vleff bench --against openvino`", "pip install 'vleff[engines]'"),
    "onnxruntime": ("`vleff bench --against onnxruntime`", "pip install 'vleff[engines]'"),
}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: "ok"; "warning" where it works but could be better; "missing" where it does not work.
        detail: what was found.
        hint: how to get what is missing; empty if nothing is.
    """

    name: str
    status: Literal["ok", "missing", "warning"]
    detail: str
    hint: str = ""


def collect() -> list[Check]:
    """Looks at everything; takes less than a second or two."""
    checks = [_python(), _version("torch", TORCH_CHECKED), _version("transformers", CHECKED_VERSIONS)]
    library = _library()
    checks.append(library)
    if library.status == "ok":
        checks += [_instruction_sets(), _cuda(), *_linears(), _choice_table()]
    return [*checks, _threads(), *_optional_parts()]


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _version(package: str, checked: tuple[str, ...]) -> Check:
    installed = metadata.version(package)
    detail = f"{installed}; checked with {', '.join(checked)}"
    if any(installed.startswith(f"{version}.") for version in checked):
        return Check(package, "ok", detail)
    return Check(package, "warning", detail, f"vleff may work; otherwise pip install '{package}=={checked[0]}.*'")


def _library() -> Check:
    try:
        from vleff import _library
    except (ImportError, RuntimeError) as error:
        return Check("compiled library", "missing", str(error), "pip install . in vleff's source folder")
    compiler = json.loads(torch.ops.vleff.build_info())["compiler"]
    return Check("compiled library", "ok", f"{_library.LIBRARY.name}, built by {compiler}")


def _instruction_sets() -> Check:
    found, used = torch.ops.vleff.cpu_isa_levels(), torch.ops.vleff.cpu_isa()
    detail = f"found {', '.join(found)}; used {used}"
    asked = os.environ.get("VLEFF_CPU_ISA")
    if asked:
        detail += f" (VLEFF_CPU_ISA={asked})"
    if used == found[-1]:
        return Check("instruction sets", "ok", detail)
    return Check("instruction sets", "warning", detail, f"unset VLEFF_CPU_ISA to use {found[-1]}")


def _cuda() -> Check:
    build = json.loads(torch.ops.vleff.build_info())
    if not build["cuda"]:
        hint = "install the CUDA toolkit, then VLEFF_CUDA=1 pip install . in vleff's source folder"
        return Check("CUDA", "warning" if torch.cuda.is_available() else "ok", "not compiled in", hint)
    detail = f"compiled with {build['cuda']} for compute capabilities {build['cuda_architectures']}"
    if torch.cuda.is_available():
        return Check("CUDA", "ok", f"{detail}; device {torch.cuda.get_device_name()}")
    return Check("CUDA", "ok", f"{detail}; torch sees no device", "a CUDA build of torch and an NVIDIA driver")


def _linears() -> Iterator[Check]:
    """Whether a row's bits are free of its batch mates in the linears of this processor's library."""
    from vleff.ops import fused_linear, packs_linear_weight

    generator = torch.Generator().manual_seed(0)
    kernel = "oneDNN" if packs_linear_weight(torch.float32) else "torch's public ops: oneDNN's are not there"
    status: Literal["ok", "warning"] = "ok" if kernel == "oneDNN" else "warning"
    yield Check("fused linears", status, f"run on {kernel}")
    unequal = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(768, 768, generator=generator).to(dtype)
        rows = torch.randn(300, 768, generator=generator).to(dtype)
        whole = fused_linear(rows, weight)
        if not all(torch.equal(fused_linear(rows[:count], weight), whole[:count]) for count in (1, 17, 100, 269)):
            unequal.append(str(dtype).removeprefix("torch."))
    if unequal:
        detail = f"in {', '.join(unequal)} a sample's last bits depend on its batch mates"
        yield Check("same bits in every batch", "warning", detail, "results stay right within rounding")
    else:
        yield Check("same bits in every batch", "ok", "a sample's bits do not depend on its batch mates")


def _choice_table() -> Check:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said here
        table = choices.table()
    hint = "vleff tune measures this machine"
    if table.refused is not None:
        return Check("choice table", "warning", f"{table}; not {table.refused}", hint)
    return Check("choice table", "ok", str(table), hint if table.path == choices.COMMITTED else "")


def _threads() -> Check:
    detail = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    return Check("threads", "ok", detail, "torch.set_num_threads or OMP_NUM_THREADS changes them")


def _optional_parts() -> Iterator[Check]:
    for package, (purpose, command) in OPTIONAL_PARTS.items():
        try:
            yield Check(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, "warning", f"not installed; needed for {purpose}", command)
