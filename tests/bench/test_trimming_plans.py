"""What benchmarks let trimmed models keep."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vleff import smarttrim
from vleff.bench import stack
from vleff.bench.models import samples_for
from vleff.bench.trimming_plans import depths, everything_kept, follow, measured_shares


def trimmed(folder: Path, batch: int) -> tuple[Any, dict[str, torch.Tensor]]:
    loaded = stack.answering_model(str(folder), 0)
    inputs = samples_for(loaded, None, None, 0, "square").batches(batch, at_least=batch)[0].inputs
    return smarttrim.attach(loaded.model), inputs


@pytest.mark.parametrize("flop_ratio", [0.7, 0.6])
def test_shares_of_the_demo_at_a_flop_ratio(answering: Path, flop_ratio: float) -> None:
    model, inputs = trimmed(answering, 8)
    runs = everything_kept(model, inputs)
    shares = measured_shares(model, runs, flop_ratio)
    assert shares.tokens.shape == (8, depths(runs)) and shares.heads.shape == (8,)
    assert (shares.tokens[:, 0] == 1).all() and (shares.tokens.diff(dim=1) <= 0).all()
    assert (shares.tokens > 0).all() and (shares.heads > 0).all() and (shares.heads <= 1).all()
    assert shares.tokens[:, -1].std() > 0  # samples differ
    reached = follow(model, runs, shares, lambda: (stack.logits(model, inputs),))
    assert reached == pytest.approx(flop_ratio, abs=0.05)


def test_a_smaller_batch_begins_alike(answering: Path) -> None:
    found = []
    for batch in (2, 6):
        model, inputs = trimmed(answering, batch)
        shares = measured_shares(model, everything_kept(model, inputs), 0.7)
        found.append(shares.tokens[:2].log())
    powers = (found[0] / found[1])[:, 1:]  # the same curves, to different powers
    torch.testing.assert_close(powers, powers[:1, :1].expand_as(powers), rtol=1e-3, atol=0)
