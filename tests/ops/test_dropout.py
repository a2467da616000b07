"""The dropout pattern against its definition on Python's integers, and its statistics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vleff.ops.dropout import dropout_keep, dropout_words

WORD_32, WORD_64 = 2**32 - 1, 2**64 - 1


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD_64
    return z ^ (z >> 31)


def word(seed: int, sample: int, head: int, query: int, key: int) -> int:
    row = mix(mix((seed + 0x9E3779B97F4A7C15 * (sample + 1)) & WORD_64) + (head << 32 | query) & WORD_64)
    x = (row + 0x9E3779B9 * key) & WORD_32
    x = (x ^ (x >> 16)) * 0x7FEB352D & WORD_32
    x ^= row >> 32
    x = (x ^ (x >> 15)) * 0x846CA68B & WORD_32
    return x ^ (x >> 16)


@given(seed=st.integers(-(2**63), 2**63 - 1), sample=st.integers(0, 10**6))
def test_words_follow_the_definition(seed: int, sample: int) -> None:
    heads, queries, keys = 2, 3, 5
    expected = [[[word(seed, sample, h, i, j) for j in range(keys)] for i in range(queries)] for h in range(heads)]
    assert dropout_words(seed, sample, heads, queries, keys).tolist() == expected


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_share_of_the_kept_and_independence(dropout_p: float) -> None:
    keep = dropout_keep(1, 0, 4, 100, 250, dropout_p).double()
    deviation = (dropout_p * (1 - dropout_p)) ** 0.5
    assert abs(keep.mean() - (1 - dropout_p)) < 4 * deviation / keep.numel() ** 0.5
    centred = (keep - (1 - dropout_p)) / deviation
    # neighbours along each axis, and the same element under the next seed and in the next sample
    neighbours = [
        (centred[1:], centred[:-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[..., 1:], centred[..., :-1]),
    ]
    for seed, sample in ((2, 0), (1, 1)):
        other = (dropout_keep(seed, sample, 4, 100, 250, dropout_p).double() - (1 - dropout_p)) / deviation
        neighbours.append((centred, other))
    for first, second in neighbours:
        assert abs((first * second).mean()) < 4 / first.numel() ** 0.5


def test_extreme_probabilities() -> None:
    assert dropout_keep(0, 0, 1, 50, 50, 0.0).all()
    assert not dropout_keep(0, 0, 1, 50, 50, 0.99999994).any()
    assert torch.equal(dropout_keep(5, 3, 2, 4, 6, 0.3)[:1, :2, :3], dropout_keep(5, 3, 1, 2, 3, 0.3))
