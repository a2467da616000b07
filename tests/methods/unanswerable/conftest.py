"""What tests with small models share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def one_thread(_same_start: None) -> Iterator[None]:
    """A model this small is slower with two threads, many times so beside other programs."""
    torch.set_num_threads(1)
    yield
