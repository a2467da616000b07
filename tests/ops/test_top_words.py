"""top_words against a stable sort, at every instruction-set level."""

from collections.abc import Callable

import pytest
import torch
from fake_cuda import fake_cuda
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vleff.ops import top_words, top_words_reference
from vleff.ops.top_words import top_words_by_torch

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.int64


@given(
    rows=st.integers(0, 5),
    words=st.integers(0, 300),
    count=st.integers(0, 12),
    values=st.sampled_from(["different", "many equal", "few finite", "NaN", "ascending"]),
)
def test_the_first_of_a_stable_sort(cpu_isa: str, rows: int, words: int, count: int, values: str) -> None:
    given_rows = {
        "different": torch.randn(rows, words),
        "many equal": torch.randint(-2, 3, (rows, words)).float(),
        "few finite": torch.where(torch.rand(rows, words) < 0.03, torch.randn(rows, words), -torch.inf),
        "NaN": torch.where(torch.rand(rows, words) < 0.5, torch.randn(rows, words), torch.nan),
        "ascending": torch.arange(rows * words).float().view(rows, words),
    }[values]
    assert_equal(top_words(given_rows, count), top_words_reference(given_rows, count))


def test_columns_behind_and_threads_change_nothing(cpu_isa: str, with_threads: Callable) -> None:
    rows = torch.randn(9, 1003).mul(4).round()
    expected = with_threads(1, top_words, rows, 10)
    assert_equal(with_threads(3, top_words, rows, 10), expected)
    wider = torch.cat([rows, torch.full((9, 77), -torch.inf)], 1)
    assert_equal(top_words(wider, 10), expected)
    assert_equal(top_words(rows.repeat_interleave(2, 1)[:, ::2], 10), expected)


def test_infinity_is_the_largest(cpu_isa: str) -> None:
    values, words = top_words(torch.tensor([[1.0, torch.inf, torch.nan, torch.inf]]), 4)
    assert values.tolist() == [[torch.inf, torch.inf, 1.0, -torch.inf]] and words.tolist() == [[1, 3, 0, 0]]


def test_inside_torch() -> None:
    rows = torch.randn(3, 40)
    torch.library.opcheck(torch.ops.vleff.top_words.default, (rows, 4))
    compiled = torch.compile(lambda x: top_words(x * 2, 4), fullgraph=True, dynamic=True)
    assert_equal(compiled(rows), top_words(rows * 2, 4))
    leaf = rows.requires_grad_()
    assert not top_words(leaf, 4)[0].requires_grad


def test_on_cuda_no_value_is_read() -> None:
    with fake_cuda():
        found = top_words_by_torch(torch.empty(3, 40, device="cuda"), 4)
    assert [(x.shape, x.dtype, x.stride(), x.device.type) for x in found] == [
        ((3, 4), torch.float32, (4, 1), "cuda"),
        ((3, 4), torch.int64, (4, 1), "cuda"),
    ]


BOTH = pytest.mark.parametrize("function", [top_words, top_words_by_torch])


@BOTH
@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(3, 4).double(), torch.zeros(3, 4, 5)], ids=str)
def test_bad_rows(function: Callable, wrong: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"top_words: argument 'rows': expected .+, got .+"):
        function(wrong, 2)


@BOTH
def test_bad_count(function: Callable) -> None:
    with pytest.raises(RuntimeError, match=r"top_words: argument 'count': expected at least 0, got -1"):
        function(torch.zeros(2, 3), -1)
