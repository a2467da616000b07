"""Whether two engines compute the same function, judged against double precision."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleff.bench.engines import HiddenStates, hidden_states
from vleff.bench.inputs import Batch

FLOAT32_TOLERANCE = 2e-6
FLOAT32_UNIT = 2.0**-23
ERROR_FACTOR = 2.0
LARGEST_ERROR_FACTOR = 3.0  # the largest of many rounding errors scatters more than their mean


@dataclass(frozen=True)
class Match:
    """The result of a comparison with the dense model; of several hidden states, that of the worst.

    Attributes:
        ok: in fp32, the difference from dense is at most 2e-6 of the largest dense value, or twice dense's own
            error where that is larger; in every dtype, the error against fp64 is at most twice that of dense by its
            root mean square, and three times by its maximum, give or take a unit in the last place of a float32 as
            large as the largest value.
        difference: largest |output - dense output| at valid positions, over the largest |dense output|.
        error_ratio: root mean square error against fp64, over that of dense.
    """

    ok: bool
    difference: float
    error_ratio: float


def reference_outputs(model: nn.Module, batches: Sequence[Batch], count: int = 4) -> dict[int, HiddenStates]:
    """Hidden states, [tokens, d] each, in fp64 of the first `count` samples, each computed alone, by number."""
    double = copy.deepcopy(model).double()
    references: dict[int, HiddenStates] = {}
    for batch in batches:
        for row, number in enumerate(batch.samples):
            if number not in references and len(references) < count:
                alone = {name: _as_double(value) for name, value in batch.alone(row).items()}
                with torch.inference_mode():
                    references[number] = tuple(states[0] for states in hidden_states(double(**alone)))
    return references


def match(
    batches: Sequence[Batch],
    dense: Sequence[HiddenStates],
    outputs: Sequence[HiddenStates],
    references: dict[int, HiddenStates],
    dtype: torch.dtype,
) -> Match:
    """Compares hidden states [batch, length, d], one or more per batch, at valid positions only.

    Tokens that the model shuffles are compared with their nearest.

    Raises:
        ValueError: none of the samples has a reference.
    """
    if not any(number in references for batch in batches for number in batch.samples):
        raise ValueError(f"references: none of the samples {sorted(references)} is in the batches")
    results = [_match_one(batches, dense, outputs, references, dtype, i) for i in range(len(batches[0].valid))]
    return max(results, key=lambda result: (not result.ok, result.difference))


def _match_one(
    batches: Sequence[Batch],
    dense: Sequence[HiddenStates],
    outputs: Sequence[HiddenStates],
    references: dict[int, HiddenStates],
    dtype: torch.dtype,
    which: int,
) -> Match:
    difference = largest = 0.0
    error, dense_error = _Error(), _Error()
    for batch, dense_output, output in zip(batches, dense, outputs, strict=True):
        valid = batch.valid[which]
        if output[which].shape != dense_output[which].shape:  # an engine that fixed the shapes of its example
            return Match(False, float("nan"), float("nan"))
        for row, number in enumerate(batch.samples):
            expected, got = (states[which][row][valid[row]].double() for states in (dense_output, output))
            # max() below would lose a NaN
            if not bool(torch.isfinite(got).all()):
                return Match(False, float("nan"), float("nan"))
            in_order = None if batch.in_order is None else int(valid[row, : batch.in_order].sum())
            difference = max(difference, float(_differences(got, expected, in_order).max()))
            largest = max(largest, float(expected.abs().max()))
            if number in references:
                dense_error.add(_differences(expected, references[number][which], in_order))
                error.add(_differences(got, references[number][which], in_order))
    relative, unit = difference / largest, FLOAT32_UNIT * largest
    ok = error.mean <= ERROR_FACTOR * dense_error.mean + unit
    ok &= error.largest <= LARGEST_ERROR_FACTOR * dense_error.largest + unit
    ok &= dtype != torch.float32 or relative <= max(FLOAT32_TOLERANCE, ERROR_FACTOR * dense_error.largest / largest)
    return Match(ok, relative, error.mean / dense_error.mean if dense_error.mean > 0 else float(error.mean > 0))


class _Error:
    """The errors of many values."""

    def __init__(self) -> None:
        self.largest = self.squares = 0.0
        self.count = 0

    def add(self, differences: Tensor) -> None:
        self.largest = max(self.largest, float(differences.max()))
        self.squares += float(differences.square().sum())
        self.count += differences.numel()

    @property
    def mean(self) -> float:
        """Root mean square."""
        return math.sqrt(self.squares / self.count)


def _differences(states: Tensor, wanted: Tensor, in_order: int | None) -> Tensor:
    """|differences| of states [tokens, d], flattened; after the first `in_order` tokens, of nearest tokens."""
    fixed = len(wanted) if in_order is None else in_order
    parts = [states[:fixed] - wanted[:fixed]]
    if fixed < len(wanted):
        # cdist by matrix products would cancel
        distances = torch.cdist(states[fixed:], wanted[fixed:], compute_mode="donot_use_mm_for_euclid_dist")
        parts += [
            states[fixed:] - wanted[fixed:][distances.argmin(1)],
            wanted[fixed:] - states[fixed:][distances.argmin(0)],
        ]
    return torch.cat(parts).abs().flatten()


def _as_double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
