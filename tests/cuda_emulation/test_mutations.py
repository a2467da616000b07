"""Mistakes in our kernels are found by what the other tests check. One mistake quickly, all in the long tier."""

import pytest
import torch
from attention_cases import Inputs, error, exact, make_inputs, rounding
from cuda_kernels import Tile

from .attention import emulated_attention
from .building import EmulatedLibrary, is_full_run
from .launching import EmulationError
from .mutations import MUTATIONS, Mutation, build_mutated

pytestmark = pytest.mark.long


def inputs_of(tile: Tile, head_dim: int) -> Inputs:
    """Two tiles of queries, three of keys, all cut at their edges, and columns that pad the head."""
    dtype = torch.float32 if tile.element == "float" else torch.float16
    inputs = make_inputs([5, 70], [3, 150], head_dim=head_dim, dtype=dtype, causal=True)
    return inputs | {"key_bias": torch.randn(153)}


def is_found(build: EmulatedLibrary, inputs: Inputs) -> bool:
    try:
        results, statistics = emulated_attention(build, **inputs)
    except EmulationError:
        return True
    same_bits = all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    no_conflicts = all(counts["matrix_load_passes"] == counts["matrix_load_passes_ideal"] for counts in statistics)
    out, lse, importance = exact(inputs | {"importance": True})
    logits = rounding(lse, torch.float32)
    bounds = [8 * rounding(out, inputs["q"].dtype) + 4 * logits * inputs["v"].abs().max(), 8 * logits]
    bounds.append(8 * logits * importance.max())
    errors = map(error, results[0], (out, lse, importance))
    return not (same_bits and no_conflicts and all(e <= bound for e, bound in zip(errors, bounds, strict=True)))


@pytest.mark.parametrize(
    ("tile", "head_dim"), sorted({(mutation.tile, mutation.head_dim) for mutation in MUTATIONS}), ids=str
)
def test_kernels_without_mistakes_pass(tile: Tile, head_dim: int) -> None:
    assert not is_found(build_mutated(None, tile), inputs_of(tile, head_dim))


@pytest.mark.parametrize("mutation", MUTATIONS if is_full_run() else MUTATIONS[:1], ids=lambda mutation: mutation.name)
def test_mistakes_are_found(mutation: Mutation) -> None:
    assert is_found(build_mutated(mutation, mutation.tile), inputs_of(mutation.tile, mutation.head_dim))
