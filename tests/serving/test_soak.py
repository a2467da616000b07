"""The soak test's own parts; it takes 30 minutes in `.ci/full`."""

import torch
from serving import soak


def test_a_short_soak_answers_with_flat_memory() -> None:
    requests, warm, most = soak.soak(9.0, kinds=6)
    assert requests > 50 and warm > 0
    assert most - warm < soak.ALLOWED


def test_memory_that_grows_is_seen() -> None:
    before = soak.resident_bytes()
    kept = torch.ones(2 * soak.ALLOWED, dtype=torch.uint8)
    assert soak.resident_bytes() - before > soak.ALLOWED
    del kept
