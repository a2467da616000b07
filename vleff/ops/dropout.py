"""The pattern of counter-based dropout: the same on every device, at any number of threads.

Whether the attention from query i to key j of head h in sample b is kept is a pure function of
(seed, b, h, i, j), i and j counted within the sample. Backward therefore replays it, and nothing is stored.
The functions here are the definition, in plain torch; kernels compute the same words as they go.
"""

import torch
from torch import Tensor

_BITS_32 = 0xFFFFFFFF


def dropout_keep(seed: int, sample: int, heads: int, queries: int, keys: int, dropout_p: float) -> Tensor:
    """Which attentions of one sample are kept.

    An element is kept where its word is at least dropout_p * 2^32, rounded as the kernels do: dropout_p to
    float32, the product to the nearest integer.

    Args:
        seed: any 64-bit integer.
        sample: its number in the batch.
        heads, queries, keys: sizes.
        dropout_p: the probability of not being kept, in [0, 1).

    Returns:
        bool [heads, queries, keys].
    """
    words = dropout_words(seed, sample, heads, queries, keys)
    return words >= min(int(round_to_float32(dropout_p) * 2**32 + 0.5), _BITS_32)


def dropout_words(seed: int, sample: int, heads: int, queries: int, keys: int) -> Tensor:
    """The uniform 32-bit words behind the pattern: int64 [heads, queries, keys], each in [0, 2^32).

    All arithmetic wraps, on unsigned words of 64 bits (mix) and of 32 bits (the rest):

        row = mix(mix(seed + 0x9E3779B97F4A7C15 * (sample + 1)) + (2^32 * head + query))
        x = low(row) + 0x9E3779B9 * key
        x ^= x >> 16;  x *= 0x7FEB352D;  x ^= high(row)
        x ^= x >> 15;  x *= 0x846CA68B;  x ^= x >> 16
    """
    of_sample = _mix(torch.tensor(_signed(seed + 0x9E3779B97F4A7C15 * (sample + 1))))
    rows = _mix(of_sample + (torch.arange(heads)[:, None] << 32) + torch.arange(queries))[:, :, None]
    x = (rows + 0x9E3779B9 * torch.arange(keys)) & _BITS_32
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _BITS_32
    x ^= (rows >> 32) & _BITS_32
    x ^= x >> 15
    x = (x * 0x846CA68B) & _BITS_32
    return x ^ (x >> 16)


def round_to_float32(number: float) -> float:
    """The float32 nearest to `number`; dropout probabilities are used at that precision."""
    return torch.tensor(number, dtype=torch.float32).item()


def _mix(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64 on int64 tensors that stand for unsigned words; torch's products wrap."""
    z = z ^ _shift_right(z, 30)
    z = z * _signed(0xBF58476D1CE4E5B9)
    z = z ^ _shift_right(z, 27)
    z = z * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """The shift of unsigned words: zeros come in from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the same low 64 bits."""
    return (word + 2**63) % 2**64 - 2**63
