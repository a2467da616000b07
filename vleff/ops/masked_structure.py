"""MaskedStructure: where the elements of a sparse matrix stand, in the order in which the kernels read them."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

_LARGEST = 256  # rows of a chunk, columns of a block: their numbers are bytes
_SLICE_ROWS = 16


@dataclass(frozen=True, eq=False)
class MaskedStructure:
    """The places of the elements of a sparse [rows, columns] matrix, without their values.

    The elements are ordered by chunks of `row_chunk` rows, within them by blocks of `column_block` columns,
    within them by rows, longest first, and within rows by columns. A pytree.

    Attributes:
        rows, columns: of the matrix.
        row_chunk, column_block: from 1 to 256.
        starts: int32 [rows * blocks + 1], the first element of each row of each block, then the number of
            elements; blocks = columns / column_block, rounded up.
        order: uint8 [rows * blocks], which row of its chunk each of these is.
        block_columns: uint8 [elements], each element's column in its block.
    """

    rows: int
    columns: int
    row_chunk: int
    column_block: int
    starts: Tensor
    order: Tensor
    block_columns: Tensor

    @classmethod
    def from_mask(
        cls, mask: Tensor, row_chunk: int | None = None, column_block: int | None = None
    ) -> "MaskedStructure":
        """The structure with an element wherever `mask` is True.

        Args:
            mask: bool [rows, columns] on the CPU, not empty.
            row_chunk, column_block: chosen by the share of elements if None.

        Raises:
            TypeError, ValueError: `mask` has another dtype, shape or device, or more than 2**31 - 1 elements.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected torch.bool, got {mask.dtype}")
        if mask.dim() != 2 or mask.numel() == 0 or mask.device.type != "cpu":
            raise ValueError(
                f"mask: expected [rows, columns], not empty, on the CPU, got {list(mask.shape)} on {mask.device}"
            )
        rows, columns = mask.shape
        elements = int(mask.sum())
        if elements > 2**31 - 1:
            raise ValueError(f"mask: expected at most {2**31 - 1} elements, got {elements}")
        chosen = _sizes_for(elements / max(mask.numel(), 1))
        row_chunk, column_block = row_chunk or chosen[0], column_block or chosen[1]
        blocks = -(-columns // column_block)
        by_block = torch.nn.functional.pad(mask, (0, blocks * column_block - columns)).view(rows, blocks, column_block)
        counts = by_block.sum(2)  # [rows, blocks]
        place = _places(rows, blocks, row_chunk, counts)
        lengths = torch.empty(rows * blocks, dtype=torch.int64)
        lengths[place.flatten()] = counts.flatten()
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        order = torch.empty(rows * blocks, dtype=torch.uint8)
        order[place.flatten()] = (torch.arange(rows) % row_chunk).to(torch.uint8)[:, None].expand(-1, blocks).flatten()
        # the elements row by row, each at its place's start plus its number in its row of the block
        first = counts.flatten().cumsum(0) - counts.flatten()
        number = torch.arange(elements) - first.repeat_interleave(counts.flatten())
        target = starts[place.flatten()].repeat_interleave(counts.flatten()) + number
        block_columns = torch.empty(elements, dtype=torch.uint8)
        block_columns[target] = by_block.nonzero()[:, 2].to(torch.uint8)
        return cls(rows, columns, row_chunk, column_block, starts.to(torch.int32), order, block_columns)

    @property
    def elements(self) -> int:
        """The number of elements."""
        return self.block_columns.shape[0]

    @property
    def blocks(self) -> int:
        """The number of blocks of columns."""
        return -(-self.columns // self.column_block)

    def positions(self) -> Tensor:
        """int64 [elements], each element's place in the matrix, flattened to [rows * columns]."""
        counts = self.starts.diff().long()
        chunk, block, _ = self._places()
        corner = (chunk * self.row_chunk + self.order.long()) * self.columns + block * self.column_block
        return corner.repeat_interleave(counts, output_size=self.elements) + self.block_columns.long()

    def mask(self) -> Tensor:
        """bool [rows, columns], True at the elements."""
        mask = torch.zeros(self.rows * self.columns, dtype=torch.bool, device=self.starts.device)
        mask[self.positions()] = True
        return mask.view(self.rows, self.columns)

    def gather(self, dense: Tensor) -> Tensor:
        """The values [elements] that a dense [rows, columns] matrix has at the elements."""
        return dense.reshape(-1).index_select(0, self.positions())

    def scatter(self, values: Tensor) -> Tensor:
        """The dense [rows, columns] matrix with these values [elements], zero elsewhere."""
        dense = values.new_zeros(self.rows * self.columns)
        return dense.index_copy(0, self.positions(), values).view(self.rows, self.columns)

    def transposed(self) -> tuple["MaskedStructure", Tensor]:
        """The transposed matrix, with the same sizes of chunks and blocks.

        Returns:
            its structure, and int32 [elements], which element of this matrix each of its elements is.
        """
        number = torch.zeros(self.rows * self.columns, dtype=torch.int32)
        number[self.positions()] = torch.arange(self.elements, dtype=torch.int32)
        transposed = MaskedStructure.from_mask(self.mask().T.contiguous(), self.row_chunk, self.column_block)
        return transposed, transposed.gather(number.view(self.rows, self.columns).T.contiguous())

    def by_steps(self) -> Tensor:
        """int32 [elements], the elements in the order in which few tokens are multiplied.

        Within each block of a chunk, 16 rows at neighbouring places make a slice. First come the first elements
        of its rows, then the second ones, and so on.
        """
        counts = self.starts.diff()
        lane = self._places()[2] % _SLICE_ROWS
        slice_number = (lane == 0).cumsum(0) - 1
        lengths = counts.new_zeros(int(slice_number[-1]) + 1, _SLICE_ROWS)
        lengths[slice_number, lane] = counts
        steps = torch.arange(_LARGEST, dtype=torch.int32)
        before = (
            lengths[:, :, None].minimum(steps).sum(1, dtype=torch.int32)
        )  # [slices, steps]: elements of earlier ones
        first = self.starts[:-1][lane == 0][slice_number]
        step = torch.arange(self.elements, dtype=torch.int32) - self.starts[:-1].repeat_interleave(counts)
        of_place = (first + lane.int()).repeat_interleave(counts)
        target = of_place + before.flatten()[slice_number.repeat_interleave(counts) * _LARGEST + step]
        order = torch.empty_like(target)
        order[target.long()] = torch.arange(self.elements, dtype=torch.int32)
        return order

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """int64 [rows * blocks] each: the chunk and the block of each place, and its number among their rows."""
        place = torch.arange(self.rows * self.blocks, device=self.starts.device)
        chunk = place // (self.row_chunk * self.blocks)
        rows_of_chunk = (self.rows - chunk * self.row_chunk).clamp(max=self.row_chunk)
        number = place - chunk * self.row_chunk * self.blocks
        return chunk, number // rows_of_chunk, number % rows_of_chunk

    def check(self) -> "MaskedStructure":
        """Itself, if it is one that `from_mask` could have made.

        Raises:
            ValueError: its parts do not fit together; the message names the first that does not.
        """
        places = self.rows * self.blocks
        for name, tensor, dtype, length in (
            ("starts", self.starts, torch.int32, places + 1),
            ("order", self.order, torch.uint8, places),
        ):
            if tensor.dtype != dtype or tensor.shape != (length,):
                raise ValueError(f"{name}: expected {dtype} [{length}], got {tensor.dtype} {list(tensor.shape)}")
        counts = self.starts.diff()
        if int(self.starts[0]) != 0 or (counts < 0).any() or int(self.starts[-1]) != self.elements:
            raise ValueError(f"starts: expected numbers that never descend from 0 to {self.elements}")
        positions = self.positions()
        rows_fit = bool((self.order < min(self.row_chunk, self.rows)).all())
        if not rows_fit or positions.unique().numel() != self.elements or (positions >= self.rows * self.columns).any():
            raise ValueError("order, block_columns: expected each element at a place of its own in the matrix")
        return self


def _sizes_for(density: float) -> tuple[int, int]:
    """Rows of a chunk and columns of a block that are fastest at this share of elements."""
    if density > 0.15:
        return 64, 128
    return (64, 192) if density > 0.07 else (128, 256)


def _places(rows: int, blocks: int, row_chunk: int, counts: Tensor) -> Tensor:
    """int64 [rows, blocks]: the place of each row of each block, the longest rows of a chunk's block first."""
    row = torch.arange(rows)[:, None].expand(rows, blocks)
    block = torch.arange(blocks).expand(rows, blocks)
    chunk = row // row_chunk
    group = chunk * blocks + block
    key = group * (_LARGEST + 1) + _LARGEST - counts
    sequence = key.flatten().argsort(stable=True)
    place = torch.empty(rows * blocks, dtype=torch.int64)
    place[sequence] = torch.arange(rows * blocks)
    return place.view(rows, blocks)


_TENSORS = ("starts", "order", "block_columns")


def _flatten(structure: MaskedStructure) -> tuple[list[Any], tuple[int, ...]]:
    sizes = tuple(getattr(structure, field.name) for field in fields(structure) if field.name not in _TENSORS)
    return [getattr(structure, name) for name in _TENSORS], sizes


def _unflatten(tensors: Any, sizes: Any) -> MaskedStructure:
    return MaskedStructure(*sizes, *tensors)


_pytree.register_pytree_node(MaskedStructure, _flatten, _unflatten, serialized_type_name="vleff.ops.MaskedStructure")
