"""Whether two engines compute the same function, judged against double precision."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleff.bench.inputs import Batch

FLOAT32_TOLERANCE = 2e-6
ERROR_FACTOR = 2.0


@dataclass(frozen=True)
class Match:
    """The result of a comparison with the dense model.

    Attributes:
        ok: in fp32, the difference from dense is at most 2e-6 of the largest dense value; in every dtype, the
            error against fp64 is at most twice that of dense.
        difference: largest |output - dense output| at valid positions, over the largest |dense output|.
        error_ratio: largest error against fp64, over that of dense.
    """

    ok: bool
    difference: float
    error_ratio: float


def reference_outputs(model: nn.Module, batches: Sequence[Batch], count: int = 4) -> dict[int, Tensor]:
    """Last hidden states [tokens, d] in fp64 of the first `count` samples, each computed alone, by number."""
    double = copy.deepcopy(model).double()
    references: dict[int, Tensor] = {}
    for batch in batches:
        for row, number in enumerate(batch.samples):
            if number not in references and len(references) < count:
                alone = {name: _as_double(value) for name, value in batch.alone(row).items()}
                with torch.inference_mode():
                    references[number] = double(**alone).last_hidden_state[0]
    return references


def match(
    batches: Sequence[Batch],
    dense: Sequence[Tensor],
    outputs: Sequence[Tensor],
    references: dict[int, Tensor],
    dtype: torch.dtype,
) -> Match:
    """Compares outputs [batch, length, d], one per batch, at valid positions only.

    Raises:
        ValueError: none of the samples has a reference.
    """
    difference = largest = dense_error = error = 0.0
    checked = 0
    for batch, dense_output, output in zip(batches, dense, outputs, strict=True):
        for row, (number, length) in enumerate(zip(batch.samples, batch.lengths, strict=True)):
            expected, got = dense_output[row, :length].double(), output[row, :length].double()
            # max() below would lose a NaN
            if not bool(torch.isfinite(got).all()):
                return Match(False, float("nan"), float("nan"))
            difference = max(difference, _largest(got - expected))
            largest = max(largest, _largest(expected))
            if number in references:
                checked += 1
                dense_error = max(dense_error, _largest(expected - references[number]))
                error = max(error, _largest(got - references[number]))
    if checked == 0:
        raise ValueError(f"references: none of the samples {sorted(references)} is in the batches")
    relative = difference / largest
    ok = error <= ERROR_FACTOR * dense_error and (dtype != torch.float32 or relative <= FLOAT32_TOLERANCE)
    return Match(ok, relative, error / dense_error if dense_error > 0 else float(error > 0))


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _as_double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
