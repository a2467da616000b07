"""sum_rows against its reference in float64."""

from collections.abc import Callable

import pytest
import torch

from vleff.ops import sum_rows, sum_rows_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count, width, stored", [(1, 1, 1), (300, 65, 40), (70, 300, 200), (0, 5, 3), (0, 5, 0)])
def test_matches_the_reference(dtype: torch.dtype, count: int, width: int, stored: int) -> None:
    rows = torch.randn(count, width).to(dtype)
    for index in (torch.randint(max(stored, 1), (count,)), torch.randint(max(stored, 1), (count,)).int()):
        sums = sum_rows(rows, index, stored)
        assert sums.dtype == dtype
        expected = sum_rows_reference(rows.double(), index, stored)
        torch.testing.assert_close(sums.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_threads_change_no_bit(with_threads: Callable) -> None:
    rows, index = torch.randn(500, 130), torch.randint(7, (500,))
    expected = with_threads(1, sum_rows, rows, index, 7)
    assert torch.equal(with_threads(3, sum_rows, rows, index, 7), expected)
    assert torch.equal(sum_rows(rows.T.contiguous().T, index, 7), expected)


def test_registrations() -> None:
    rows = torch.randn(6, 4, requires_grad=True)
    index = torch.tensor([0, 2, 2, 1, 4, 0])
    torch.library.opcheck(torch.ops.vleff.sum_rows.default, (rows, index, 5))
    weights = torch.randn(5, 4)
    (gradient,) = torch.autograd.grad((sum_rows(rows, index, 5) * weights).sum(), rows)
    assert torch.equal(gradient, weights[index])


@pytest.mark.parametrize(
    "name, value",
    [
        ("rows", torch.zeros(3, 4, dtype=torch.float64)),
        ("rows", torch.zeros(3)),
        ("index", torch.tensor([0, 1, 5])),
        ("index", torch.tensor([0, -1, 1])),
        ("index", torch.tensor([0, 1])),
        ("stored", -1),
    ],
)
def test_bad_arguments(name: str, value: object) -> None:
    arguments = {"rows": torch.zeros(3, 4), "index": torch.tensor([0, 1, 1]), "stored": 5}
    with pytest.raises(RuntimeError, match=f"argument '{name}'"):
        sum_rows(**arguments | {name: value})
