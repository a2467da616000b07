"""What the offsets of a ragged batch say."""

from itertools import pairwise

import torch
from torch import Tensor


def sample_rows(offsets: Tensor) -> list[slice]:
    """The rows of each sample."""
    return [slice(start, end) for start, end in pairwise(offsets.tolist())]


def has_data(tensor: Tensor) -> bool:
    """Whether the tensor's values exist, as those of fake and meta tensors do not."""
    return not tensor.is_meta and not isinstance(tensor, torch._subclasses.FakeTensor)


def sample_lengths(offsets: Tensor, longest: int) -> list[int]:
    """The length of each sample; of offsets without data, as if every sample were the longest."""
    return offsets.diff().tolist() if has_data(offsets) else [longest] * (offsets.numel() - 1)
