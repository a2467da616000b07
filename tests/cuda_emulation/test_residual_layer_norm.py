"""The compiled CUDA kernel of residual_layer_norm, run on the CPU, against float64."""

import pytest
import torch
from cuda_kernels import KERNELS
from torch import Tensor

from vleff.ops import residual_layer_norm_reference

from .building import Change, EmulatedLibrary, build_changed, build_kernels, is_full_run
from .launching import EmulationError, data_type, float32, int64, launch_alike, pointer

pytestmark = pytest.mark.long

SOURCE = "residual_layer_norm_kernel.cu"
EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 17, 40, 768, 2048, 2056, 2305]  # up to 2048 a row is held in registers


@pytest.fixture(scope="module", params=["compute_80", "compute_90"] if is_full_run() else ["compute_80"])
def build(request: pytest.FixtureRequest) -> EmulatedLibrary:
    return build_kernels(KERNELS / SOURCE, request.param)


def make_inputs(rows: int, width: int, dtype: torch.dtype, residual: bool = True) -> dict[str, Tensor]:
    """With an outlier and another mean than 0."""
    input = torch.randn(rows, width) + 3
    input[:, width // 2] = 30
    inputs = {"input": input, "weight": torch.randn(width), "bias": torch.randn(width)}
    if residual:
        inputs["residual"] = torch.randn(rows, width)
    return {name: x.to(dtype) for name, x in inputs.items()}


def emulated(build: EmulatedLibrary, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    input = inputs["input"]
    problem = [data_type(input.dtype), *map(int64, input.shape), pointer("input")]
    problem += [pointer("residual" if "residual" in inputs else None), pointer("weight"), pointer("bias")]
    problem += [float32(EPS), pointer("normalized"), pointer("sum")]
    results = dict.fromkeys(("normalized", "sum"), (input.shape, input.dtype))
    made = launch_alike(build, "vleff_residual_layer_norm_cuda", problem, inputs, results)
    return made["normalized"], made["sum"]


def check(actual: tuple[Tensor, Tensor], inputs: dict[str, Tensor]) -> None:
    """At most twice the error of plain torch."""
    wide = {name: x.double() for name, x in inputs.items()}
    exact, exact_sum = residual_layer_norm_reference(**{"residual": None} | wide, eps=EPS, return_sum=True)
    plain = inputs["input"] + inputs["residual"] if "residual" in inputs else inputs["input"]
    plain = torch.nn.functional.layer_norm(plain, plain.shape[1:], inputs["weight"], inputs["bias"], EPS)
    normalized, total = actual
    rounding = torch.finfo(normalized.dtype).eps * exact.abs().max()
    assert (normalized.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + rounding
    assert torch.equal(total, exact_sum.float().to(total.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_error_is_at_most_twice_plain_torch(build: EmulatedLibrary, width: int, dtype: torch.dtype) -> None:
    for residual in (False, True):
        inputs = make_inputs(5, width, dtype, residual)
        check(emulated(build, inputs), inputs)


CHANGES = [
    Change("count what is past the row", "residual_layer_norm.cuh", "chunk * elements + e < width ?", "true ?"),
    Change("normalize one row too many", "residual_layer_norm.cuh", "row >= problem.rows", "row > problem.rows"),
    Change("forget the residual", "residual_layer_norm.cuh", "if (residual) add_elements", "if (false) add_elements"),
    Change(
        "leave chunks out",
        "residual_layer_norm.cuh",
        "lane + i * warp_size < chunks",
        "lane + i * warp_size + 1 < chunks",
    ),
]


@pytest.mark.parametrize("change", CHANGES if is_full_run() else CHANGES[:1], ids=lambda change: change.name)
def test_mistakes_are_found(change: Change) -> None:
    inputs = make_inputs(5, 17, torch.float32)
    build = build_changed(SOURCE, {}, change)
    with pytest.raises((EmulationError, AssertionError)):
        check(emulated(build, inputs), inputs)
