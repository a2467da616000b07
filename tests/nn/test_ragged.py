"""RaggedBatch: packing, compacting and unpacking, as eager code, under autograd, in trees and in torch.compile."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree

from vleff.nn import RaggedBatch

MASKS = st.tuples(st.integers(1, 5), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(
        st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


def masked(padded: Tensor, mask: Tensor) -> Tensor:
    return padded.masked_fill(~mask.reshape(mask.shape + (1,) * (padded.dim() - 2)), 0)


def assert_consistent(batch: RaggedBatch, mask: Tensor) -> None:
    """The batch holds the tokens where `mask` is True, in order."""
    assert batch.offsets.dtype == torch.int32 and batch.offsets[0] == 0
    assert batch.batch_size == len(mask)
    assert torch.equal(batch.lengths, mask.sum(1).int())
    assert torch.equal(batch.positions[: mask.sum()], mask.nonzero()[:, 1])
    assert isinstance(batch.max_length, int) and batch.max_length == mask.shape[1]


@given(mask=MASKS, integers=st.booleans())
def test_pack_and_unpack(mask: list[list[bool]], integers: bool) -> None:
    valid = torch.tensor(mask)
    padded = torch.randn(*valid.shape, 3)
    batch = RaggedBatch.pack(padded, valid.long() if integers else valid)
    assert_consistent(batch, valid)
    assert torch.equal(batch.values, padded[valid])
    assert torch.equal(batch.unpack(), masked(padded, valid))
    longer = batch.unpack(valid.shape[1] + 2)
    assert torch.equal(longer[:, :-2], masked(padded, valid)) and (longer[:, -2:] == 0).all()


@given(mask=MASKS, keep=st.randoms(use_true_random=False), twice=st.booleans())
def test_compact_remembers_positions(mask: list[list[bool]], keep: object, twice: bool) -> None:
    valid = torch.tensor(mask)
    padded = torch.randn(*valid.shape, 2, 3)
    batch = RaggedBatch.pack(padded, valid)
    for _ in range(1 + twice):
        survivors = torch.tensor([keep.random() < 0.6 for _ in range(len(batch.values))], dtype=torch.bool)
        valid = valid.masked_scatter(valid, survivors)
        batch = batch.compact(survivors)
        assert_consistent(batch, valid)
        assert torch.equal(batch.values, padded[valid])
        assert torch.equal(batch.unpack(), masked(padded, valid))


@given(mask=MASKS, keep=st.randoms(use_true_random=False), more=st.integers(0, 3))
def test_more_rows_than_tokens(mask: list[list[bool]], keep: object, more: int) -> None:
    """As on a device, where the host does not know how many tokens stay."""
    valid = torch.tensor(mask)
    padded = torch.randn(*valid.shape, 3)
    rows = min(int(valid.sum()) + more, valid.numel())
    batch = RaggedBatch.pack(padded, valid, rows)
    assert len(batch.values) == rows
    assert_consistent(batch, valid)
    assert torch.equal(batch.unpack(), masked(padded, valid))
    survivors = torch.tensor([keep.random() < 0.6 for _ in range(rows)], dtype=torch.bool)
    valid = valid.masked_scatter(valid, survivors)
    capacity = batch.compact(survivors, rows)
    assert len(capacity.values) == rows
    assert_consistent(capacity, valid)
    assert torch.equal(capacity.unpack(), masked(padded, valid))


def test_without_padding_nothing_is_copied() -> None:
    padded = torch.randn(3, 5, 4)
    for mask in (None, torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 5, dtype=torch.int64)):
        batch = RaggedBatch.pack(padded, mask)
        assert batch.values.data_ptr() == padded.data_ptr() == batch.unpack().data_ptr()
        assert torch.equal(batch.offsets, torch.tensor([0, 5, 10, 15], dtype=torch.int32))
        assert_consistent(batch, torch.ones(3, 5, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_no_tokens(shape: tuple[int, int]) -> None:
    for mask in (None, torch.zeros(shape, dtype=torch.bool)):
        batch = RaggedBatch.pack(torch.randn(*shape, 4), mask)
        assert batch.values.shape == (0, 4) and batch.unpack().shape == (*shape, 4)
        assert batch.compact(torch.zeros(0, dtype=torch.bool)).offsets.tolist() == [0] * (shape[0] + 1)
        assert batch.positions.shape == (0,)


def test_all_padding() -> None:
    batch = RaggedBatch.pack(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert batch.values.shape == (0, 4) and torch.equal(batch.unpack(), torch.zeros(2, 3, 4))


def test_made_by_hand() -> None:
    values = torch.randn(6, 4)
    batch = RaggedBatch(values, torch.tensor([0, 2, 2, 6], dtype=torch.int32), 5)
    assert batch.positions.tolist() == [0, 1, 0, 1, 2, 3]
    padded = batch.unpack()
    assert torch.equal(padded[0, :2], values[:2]) and torch.equal(padded[2, :4], values[2:])
    assert padded.count_nonzero() == values.numel()
    assert batch.compact(torch.tensor([0, 1, 0, 0, 1, 0]).bool()).positions.tolist() == [1, 2]


def test_gradients_reach_exactly_the_tokens() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    padded = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([True, False, True, True, False])

    def function(padded: Tensor) -> Tensor:
        return RaggedBatch.pack(padded, mask).compact(keep).unpack(4).square()

    assert torch.autograd.gradcheck(function, padded)
    (gradient,) = torch.autograd.grad(function(padded).sum(), padded)
    kept = mask.masked_scatter(mask, keep)
    assert torch.equal(gradient, masked(2 * padded, kept))


def test_replace_keeps_the_positions() -> None:
    batch = RaggedBatch.pack(torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 1, 0]]))
    other = batch.replace(torch.ones(3, 7))
    assert other.unpack().shape == (2, 3, 7) and torch.equal(other.positions, batch.positions)


def test_is_a_tree() -> None:
    batch = RaggedBatch.pack(torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 1, 0]]))
    leaves, spec = _pytree.tree_flatten({"batch": batch})
    assert len(leaves) == 3
    again = _pytree.tree_unflatten(leaves, spec)["batch"]
    assert torch.equal(again.unpack(), batch.unpack()) and again.max_length == 3
    half = _pytree.tree_map(lambda leaf: leaf.half() if leaf.is_floating_point() else leaf, batch)
    assert half.values.dtype == torch.float16 and torch.equal(half.offsets, batch.offsets)
    paths = [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(batch)[0]]
    assert paths == [".values", ".offsets", ".slots"]
    without_padding = RaggedBatch.pack(torch.randn(2, 3, 4))
    leaves, spec = _pytree.tree_flatten(without_padding)
    assert torch.equal(_pytree.tree_unflatten(leaves, spec).unpack(), without_padding.unpack())


def test_copies_and_pickles() -> None:
    batch = RaggedBatch.pack(torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 1, 0]]))
    for again in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(again.unpack(), batch.unpack()) and torch.equal(again.offsets, batch.offsets)


BATCH = RaggedBatch(torch.zeros(4, 2), torch.tensor([0, 1, 4], dtype=torch.int32), 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: RaggedBatch.pack(torch.zeros(3)), r"padded: expected \[batch, length, ...\], got \[3\]"),
        (
            lambda: RaggedBatch.pack(torch.zeros(2, 3, 1), torch.ones(3, 2)),
            r"mask: expected .* = \[2, 3\], got \[3, 2\]",
        ),
        (
            lambda: RaggedBatch.pack(torch.zeros(2, 3, 1), torch.full((2, 3), torch.nan)),
            "mask: expected bool or integers.*got torch.float32",
        ),
        (lambda: BATCH.compact(torch.ones(3, dtype=torch.bool)), r"keep: expected \[rows\] = \[4\], got \[3\]"),
        (lambda: BATCH.compact(torch.ones(4)), "keep: expected torch.bool, got torch.float32"),
        (lambda: BATCH.compact(BATCH.values[:, 0] == 0, 3), "rows: expected at least 4.*, got 3"),
        (lambda: BATCH.unpack(2), "length: expected at least max_length = 3, got 2"),
        (lambda: BATCH.replace(torch.zeros(3, 2)), r"values: expected .*4, .* got \[3, 2\]"),
        (
            lambda: RaggedBatch(BATCH.values, BATCH.offsets, 1).unpack(),
            "max_length: expected at least 3, the longest sample's length, got 1",
        ),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


LINEAR = torch.nn.Linear(4, 4)


def through_a_layer(padded: Tensor, mask: Tensor) -> Tensor:
    batch = RaggedBatch.pack(padded, mask)
    return batch.replace(torch.nn.functional.gelu(LINEAR(batch.values))).unpack()


@pytest.mark.parametrize("dynamic", [True, None])
def test_compiles_once_for_all_token_counts(dynamic: bool | None) -> None:
    """Also with dynamic=None, once the padded length has changed a first time."""
    torch._dynamo.reset()
    compiled = torch.compile(through_a_layer, fullgraph=True, dynamic=dynamic)
    settled = 0 if dynamic else 1
    for number, (batch, length, kept) in enumerate([(2, 5, 0.5), (3, 7, 0.7), (3, 7, 0.2), (5, 9, 0.0), (2, 6, 1.0)]):
        padded = torch.randn(batch, length, 4, requires_grad=True)
        mask = torch.rand(batch, length) < kept
        with torch._dynamo.config.patch(error_on_recompile=number > settled):
            actual = compiled(padded, mask)
            gradient = torch.autograd.grad(actual.square().sum(), padded)[0]
        expected = through_a_layer(padded, mask)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), padded)[0])


def halve(batch: RaggedBatch) -> RaggedBatch:
    return batch.replace(batch.values * 2).compact(batch.values[:, 0] > 0)


def test_goes_into_and_out_of_compiled_functions() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(halve, fullgraph=True, dynamic=True)
    for number, length in enumerate((5, 6, 9)):
        batch = RaggedBatch.pack(torch.randn(3, length, 4), torch.rand(3, length) < 0.8)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(batch)
        expected = halve(batch)
        assert isinstance(actual, RaggedBatch) and actual.max_length == length
        assert torch.equal(actual.unpack(), expected.unpack()) and torch.equal(actual.offsets, expected.offsets)
