"""Whether two engines compute the same function, judged against double precision."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleff.bench.engines import HiddenStates, hidden_states
from vleff.bench.inputs import Batch

FLOAT32_TOLERANCE = 2e-6
FLOAT32_UNIT = 2.0**-23
ERROR_FACTOR = 2.0


@dataclass(frozen=True)
class Match:
    """The result of a comparison with the dense model; of several hidden states, that of the worst.

    Attributes:
        ok: in fp32, the difference from dense is at most 2e-6 of the largest dense value, or twice dense's own
            error where that is larger; in every dtype, the error against fp64 is at most twice that of dense, give or
            take a unit in the last place of a float32 as large as the largest value.
        difference: largest |output - dense output| at valid positions, over the largest |dense output|.
        error_ratio: largest error against fp64, over that of dense.
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
    difference = largest = dense_error = error = 0.0
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
            difference = max(difference, _difference(got, expected, in_order))
            largest = max(largest, float(expected.abs().max()))
            if number in references:
                reference = references[number][which]
                dense_error = max(dense_error, _difference(expected, reference, in_order))
                error = max(error, _difference(got, reference, in_order))
    relative = difference / largest
    ok = error <= ERROR_FACTOR * dense_error + FLOAT32_UNIT * largest
    ok &= dtype != torch.float32 or relative <= max(FLOAT32_TOLERANCE, ERROR_FACTOR * dense_error / largest)
    return Match(ok, relative, error / dense_error if dense_error > 0 else float(error > 0))


def _difference(states: Tensor, wanted: Tensor, in_order: int | None) -> float:
    """The largest difference of states [tokens, d]; after the first `in_order` tokens, of nearest tokens."""
    fixed = len(wanted) if in_order is None else in_order
    result = float((states[:fixed] - wanted[:fixed]).abs().max())
    if fixed < len(wanted):
        # cdist by matrix products would cancel
        distances = torch.cdist(states[fixed:], wanted[fixed:], compute_mode="donot_use_mm_for_euclid_dist")
        there = (states[fixed:] - wanted[fixed:][distances.argmin(1)]).abs().max()
        back = (wanted[fixed:] - states[fixed:][distances.argmin(0)]).abs().max()
        result = max(result, float(there), float(back))
    return result


def _as_double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
