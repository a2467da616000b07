"""RaggedBatch: samples of different lengths without padding between them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from vleff.nn.pending_count import PendingCount, can_wait_for


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """The tokens of all samples, one after the other.

    A pytree: torch.compile and functions over trees of tensors see through it. The methods are differentiable
    in the tokens, and compile with `fullgraph=True` without recompiling when only token counts change.

    A batch has exactly its samples' tokens as rows. On other devices than the CPU the count of tokens stands on
    the device, and the host waits for it where it can: not under torch.compile, nor while a CUDA graph is captured.
    There, and where `rows` says so, a batch may have more rows than tokens. Those behind `offsets[-1]` belong to no
    sample; `unpack` leaves them out.

    Attributes:
        values: [rows, ...], the tokens of sample b are the rows offsets[b] to offsets[b + 1].
        offsets: int32 [batch + 1], from 0 to the number of tokens, never descending.
        max_length: no sample is longer; a host integer, known without reading the device. Also the length of
            the padded batch.
        slots: int64 [rows], which row of the padded batch, flattened to [batch * max_length, ...], each token
            is from; rows that belong to no sample say batch * max_length. None if every sample's tokens stand
            at its first positions.
    """

    values: Tensor
    offsets: Tensor
    max_length: int
    slots: Tensor | None = None

    @classmethod
    def pack(cls, padded: Tensor, mask: Tensor | None = None, rows: int | None = None) -> "RaggedBatch":
        """Drops the padding of a padded batch. Without padding this is a view.

        Args:
            padded: [batch, length, ...].
            mask: bool or integer [batch, length], zero at padding, which may be anywhere; None without any.
            rows: as in `compact`.

        Raises:
            ValueError, TypeError: an argument has a wrong shape or dtype.
        """
        if padded.dim() < 2:
            raise ValueError(f"padded: expected [batch, length, ...], got {list(padded.shape)}")
        batch, length = padded.shape[:2]
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=padded.device) * length
        whole = cls(padded.flatten(0, 1), offsets, length)
        if mask is None:
            return whole
        if mask.shape != padded.shape[:2]:
            raise ValueError(f"mask: expected [batch, length] = [{batch}, {length}], got {list(mask.shape)}")
        if mask.is_floating_point() or mask.is_complex():
            raise TypeError(f"mask: expected bool or integers, zero at padding, got {mask.dtype}")
        keep = mask.flatten() != 0
        if rows is None and can_wait_for(keep):
            count = PendingCount(keep.sum()).wait()
            if count == keep.shape[0]:
                return whole
            rows = None if keep.device.type == "cpu" else count
        return whole.compact(keep, rows)

    def compact(self, keep: Tensor, rows: int | None = None) -> "RaggedBatch":
        """Drops tokens. The survivors keep their order and remember their positions.

        Args:
            keep: bool [rows], True for the tokens that stay.
            rows: of the result, at least the number of tokens that stay; for devices, where the host may know
                that number by other means or round it up to one of few sizes for graph capture. If None: on
                the CPU the tokens that stay, elsewhere as many as before.

        Returns:
            a batch with the same number of samples and the same max_length.

        Raises:
            ValueError, TypeError: `keep` has a wrong shape or dtype; on the CPU, `rows` is too small.
        """
        if keep.shape != self.values.shape[:1]:
            raise ValueError(f"keep: expected [rows] = [{self.values.shape[0]}], got {list(keep.shape)}")
        if keep.dtype != torch.bool:
            raise TypeError(f"keep: expected torch.bool, got {keep.dtype}")
        exact = rows is None and keep.device.type == "cpu"
        if not exact:
            keep = keep & (torch.arange(keep.shape[0], device=keep.device) < self.offsets[-1])
        if rows is not None and _can_read(keep) and int(keep.sum()) > rows:
            raise ValueError(f"rows: expected at least {int(keep.sum())}, the tokens that stay, got {rows}")
        kept_before = torch.nn.functional.pad(keep.cumsum(0, dtype=torch.int32), (1, 0))
        offsets = kept_before.index_select(0, self.offsets)
        slots = self._slots()
        if exact:
            survivors = keep.nonzero().squeeze(1)
            slots = slots.index_select(0, survivors)
        else:  # dropped tokens go behind the survivors
            survivors = keep.to(torch.uint8).argsort(descending=True, stable=True)[:rows]
            slots = slots.masked_fill(~keep, self._padded_rows()).index_select(0, survivors)
        return RaggedBatch(self.values.index_select(0, survivors), offsets, self.max_length, slots)

    def select(self, survivors: Tensor, offsets: Tensor) -> "RaggedBatch":
        """Only the tokens with certain row numbers. They remember their positions.

        Args:
            survivors: int32 or int64 [kept], row numbers, ascending; where the host cannot wait for the device, any
                behind the last sample's.
            offsets: int32 [batch + 1], where each sample's tokens begin among them.
        """
        slots = self._slots().index_select(0, survivors)
        if survivors.device.type != "cpu" and not can_wait_for(survivors):  # there may be more rows than tokens
            numbers = torch.arange(survivors.shape[0], device=survivors.device)
            slots = slots.masked_fill(numbers >= offsets[-1], self._padded_rows())
        return RaggedBatch(self.values.index_select(0, survivors), offsets, self.max_length, slots)

    def unpack(self, length: int | None = None) -> Tensor:
        """The padded batch: every token at its position, zeros elsewhere.

        Args:
            length: of the result, at least max_length, which it is if None.

        Returns:
            [batch, length, ...].

        Raises:
            ValueError: `length` is too small, or, on the CPU, max_length is.
        """
        length = self.max_length if length is None else length
        if length < self.max_length:
            raise ValueError(f"length: expected at least max_length = {self.max_length}, got {length}")
        values = self.values
        if self.slots is not None or values.shape[0] != self._padded_rows():
            # one row more: a place for the rows that belong to no sample
            padded = values.new_zeros(self._padded_rows() + 1, *values.shape[1:])
            values = padded.index_copy_(0, self._slots(), values)[:-1]
        padded = values.unflatten(0, (self.batch_size, self.max_length))
        if length == self.max_length:
            return padded
        more = padded.new_zeros(self.batch_size, length - self.max_length, *values.shape[1:])
        return torch.cat([padded, more], 1)

    def gather(self, padded: Tensor) -> Tensor:
        """The rows of this batch's tokens in a padded batch of its size; the opposite of `unpack`.

        Args:
            padded: [batch, max_length, ...].

        Returns:
            [rows, ...], zeros for rows that belong to no sample.

        Raises:
            ValueError: `padded` has another size.
        """
        if padded.shape[:2] != (self.batch_size, self.max_length):
            expected = f"[{self.batch_size}, {self.max_length}, ...]"
            raise ValueError(f"padded: expected [batch, max_length, ...] = {expected}, got {list(padded.shape)}")
        rows = padded.flatten(0, 1)
        if self.slots is None and self.values.shape[0] == self._padded_rows():
            return rows
        return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, self._slots())

    def replace(self, values: Tensor) -> "RaggedBatch":
        """Other values [rows, ...] for the same tokens.

        Raises:
            ValueError: another number of rows.
        """
        if values.shape[:1] != self.values.shape[:1]:
            raise ValueError(f"values: expected [rows = {self.values.shape[0]}, ...], got {list(values.shape)}")
        return RaggedBatch(values, self.offsets, self.max_length, self.slots)

    @property
    def batch_size(self) -> int:
        """The number of samples."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """int32 [batch], the tokens of each sample."""
        return self.offsets.diff()

    @property
    def positions(self) -> Tensor:
        """int64 [rows], each token's position in its sample of the padded batch."""
        return self._slots() % max(self.max_length, 1)

    @property
    def samples(self) -> Tensor:
        """int64 [rows], the sample that each token belongs to."""
        return self._slots() // max(self.max_length, 1)

    def _padded_rows(self) -> int:
        return self.batch_size * self.max_length

    def _slots(self) -> Tensor:
        if self.slots is not None:
            return self.slots
        numbers = torch.arange(self.values.shape[0], device=self.values.device)
        if self.values.shape[0] == self._padded_rows():
            return numbers
        self._check_max_length()
        offsets = self.offsets.long()
        samples = torch.bucketize(numbers, offsets[1:], right=True)
        # rows behind the last sample count as sample number `batch_size`, which has no slots
        slots = samples * self.max_length + numbers - offsets.index_select(0, samples)
        return slots.clamp(max=self._padded_rows())

    def _check_max_length(self) -> None:
        if _can_read(self.offsets) and self.batch_size > 0:
            longest = int(self.lengths.max())
            if longest > self.max_length:
                raise ValueError(
                    f"max_length: expected at least {longest}, the longest sample's length, got {self.max_length}"
                )


def _can_read(tensor: Tensor) -> bool:
    """Whether the host may look at the values for free."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _flatten(batch: RaggedBatch) -> tuple[list[Any], int]:
    return [batch.values, batch.offsets, batch.slots], batch.max_length


def _flatten_with_keys(batch: RaggedBatch) -> tuple[list[tuple[Any, Any]], int]:
    leaves, max_length = _flatten(batch)
    keys = [_pytree.GetAttrKey(name) for name in ("values", "offsets", "slots")]
    return list(zip(keys, leaves, strict=True)), max_length


def _unflatten(leaves: Any, max_length: int) -> RaggedBatch:
    values, offsets, slots = leaves
    return RaggedBatch(values, offsets, max_length, slots)


_pytree.register_pytree_node(
    RaggedBatch,
    _flatten,
    _unflatten,
    serialized_type_name="vleff.nn.RaggedBatch",
    flatten_with_keys_fn=_flatten_with_keys,
)
