"""MaskedStructure: every element once, in the documented order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree

from vleff.ops import MaskedStructure


@given(
    st.integers(1, 150),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(1, 256),
    st.integers(1, 256),
)
def test_order(rows: int, columns: int, share: float, row_chunk: int, column_block: int) -> None:
    mask = torch.rand(rows, columns) < share
    structure = MaskedStructure.from_mask(mask, row_chunk, column_block).check()
    assert torch.equal(structure.mask(), mask)
    assert structure.elements == int(mask.sum())
    position = structure.positions()
    row, column = position // columns, position % columns
    lengths = structure.starts.diff()
    place = torch.arange(rows * structure.blocks).repeat_interleave(lengths)
    keys = torch.stack([row // row_chunk, column // column_block, place, column])
    for earlier, later in zip(keys.T[:-1].tolist(), keys.T[1:].tolist(), strict=True):
        assert earlier < later
    for chunk in range(0, rows, row_chunk):
        count = min(row_chunk, rows - chunk)
        begin = chunk * structure.blocks
        in_block = lengths[begin : begin + count * structure.blocks].view(structure.blocks, count)
        assert (in_block.diff(dim=1) <= 0).all()  # longest rows first


def test_values_come_and_go() -> None:
    mask = torch.rand(70, 90) < 0.3
    structure, weight = MaskedStructure.from_mask(mask), torch.randn(70, 90)
    values = structure.gather(weight)
    assert torch.equal(structure.scatter(values), weight * mask)
    transposed, elements = structure.transposed()
    assert torch.equal(transposed.check().mask(), mask.T)
    assert torch.equal(transposed.scatter(values[elements]), (weight * mask).T)


def test_it_is_a_pytree() -> None:
    structure = MaskedStructure.from_mask(torch.ones(3, 4, dtype=torch.bool))
    leaves, spec = _pytree.tree_flatten(structure)
    assert len(leaves) == 3
    assert torch.equal(_pytree.tree_unflatten(leaves, spec).mask(), structure.mask())


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match=r"mask: expected torch\.bool"):
        MaskedStructure.from_mask(torch.ones(2, 2))
    for shape in ((4,), (0, 3), (3, 0)):
        with pytest.raises(ValueError, match=r"mask: expected \[rows, columns\]"):
            MaskedStructure.from_mask(torch.ones(shape, dtype=torch.bool))
    good = MaskedStructure.from_mask(torch.ones(3, 4, dtype=torch.bool))
    wrong = {"starts": good.starts.flip(0), "order": good.order.int()}
    for name, value in wrong.items():
        parts = {"starts": good.starts, "order": good.order, "block_columns": good.block_columns} | {name: value}
        with pytest.raises(ValueError, match=name):
            MaskedStructure(3, 4, good.row_chunk, good.column_block, **parts).check()
