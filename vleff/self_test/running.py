"""Runs cases and compares outputs and gradients with the reference in float64."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from vleff.self_test.case import Case, Function
from vleff.self_test.targets import Target

# Allowed errors, in roundings of the largest number of a result: of the dtype under test, in which results are stored
# and factors rounded, and of float32, in which sums are made.
STORED_ROUNDINGS, SUMMED_ROUNDINGS = 4, 64


@dataclass(frozen=True)
class Outcome:
    """What became of one case in one dtype on one target.

    Attributes:
        op, case: as of the case.
        target: its name.
        dtype: the one under test.
        error: the largest difference from float64 in an output or a gradient, relative to the largest number of
            that tensor; infinite where shapes or infinities differ, integers are not equal, or the op failed.
        detail: the tensor with that error, or the exception.
    """

    op: str
    case: str
    target: str
    dtype: torch.dtype
    error: float
    detail: str

    @property
    def bound(self) -> float:
        """What `error` may be."""
        stored, summed = (torch.finfo(dtype).eps for dtype in (self.dtype, torch.float32))
        return STORED_ROUNDINGS * stored + SUMMED_ROUNDINGS * summed

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound


def run(cases: Iterable[Case], targets: Sequence[Target]) -> Iterator[Outcome]:
    """The outcomes of all cases, in all dtypes, on all targets that have a kernel for the op."""
    for case in cases:
        for dtype in case.dtypes:
            arguments = _converted(case.arguments, torch.device("cpu"), dtype)
            expected = _results(case.reference, _in_float64(arguments), dtype)
            for target in targets:
                if target.runs(case.op):
                    with target.active():
                        error, detail = _compare(case, arguments, expected, target.device, dtype)
                    yield Outcome(case.op, case.name, target.name, dtype, error, detail)


def _compare(
    case: Case, arguments: dict[str, Any], expected: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[float, str]:
    try:
        actual = _results(case.function, _converted(arguments, device, dtype), dtype)
    except Exception as error:  # whatever fails in a user's environment belongs in the report
        return torch.inf, f"{type(error).__name__}: {error}"
    if actual.keys() != expected.keys():
        return torch.inf, f"expected {', '.join(expected)}, got {', '.join(actual)}"
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def _results(function: Function, arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, and gradients of a weighted sum of them, on the CPU, by name. The weights are the same in all calls."""
    result = function(**arguments)
    outputs = result if isinstance(result, tuple) else (result,)
    named = {f"output {number}": output for number, output in enumerate(outputs, 1)}
    leaves = [x for x in _pytree.tree_leaves(arguments) if isinstance(x, Tensor) and x.requires_grad]
    if leaves:
        generator = torch.Generator().manual_seed(0)
        differentiable = [output for output in outputs if output.requires_grad]
        weights = [torch.randn(x.shape, generator=generator).to(dtype).to(x.device, x.dtype) for x in differentiable]
        gradients = torch.autograd.grad(differentiable, leaves, weights)
        named |= {f"gradient {number}": gradient for number, gradient in enumerate(gradients, 1)}
    return {name: tensor.detach().cpu() for name, tensor in named.items()}


def _converted(arguments: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments on a device, float64 ones in the dtype under test."""
    return _mapped(arguments, lambda x: x.to(device, dtype if x.dtype == torch.float64 else x.dtype))


def _in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    return _mapped(arguments, lambda x: x.double() if x.is_floating_point() else x)


def _mapped(arguments: dict[str, Any], change: Any) -> dict[str, Any]:
    def changed(x: Any) -> Any:
        return change(x.detach()).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    return _pytree.tree_map(changed, arguments)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest finite |expected|; infinite where they cannot be compared."""
    if actual.shape != expected.shape:
        return torch.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else torch.inf
    actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(actual[~finite], expected[~finite]):
        return torch.inf
    error = (actual - expected)[finite].abs().nan_to_num(nan=torch.inf)
    if not error.any():
        return 0.0
    largest = expected[finite].abs().max()
    return float(error.max() / largest)  # infinite where all should be 0
