"""Dropped tokens that live on as one: the mean of those dropped of a sample, counted as many in the attention."""

from dataclasses import replace

import torch
from torch import Tensor

from vleff.models.trimming import Stream
from vleff.nn.ragged import RaggedBatch
from vleff.ops.trim_tokens import sum_parts


def with_merged_token(stream: Stream) -> Stream:
    """The stream with one more token at the end of each sample, that stands for nothing yet: its size is 0.

    It is one more place in the padded batch, too: the last one.
    """
    tokens, parts = stream.tokens, stream.parts
    batch, total, modalities = tokens.batch_size, stream.values.shape[0], stream.modalities
    device = parts.device
    old_rows = torch.arange(total, device=device) + tokens.samples
    count = total + batch

    def spread(rows: Tensor, fill: float) -> Tensor:
        return rows.new_full((count, *rows.shape[1:]), fill).index_copy(0, old_rows, rows)

    numbers = torch.arange(batch, device=device)
    length = tokens.max_length + 1
    slots = (numbers.repeat_interleave(tokens.lengths + 1, output_size=count) + 1) * length - 1
    slots = slots.index_copy(0, old_rows, tokens.samples * length + tokens.positions)
    pinned = torch.zeros(total, dtype=torch.bool, device=device) if stream.pinned is None else stream.pinned
    before = torch.arange(parts.shape[0], device=device, dtype=torch.int32) // modalities
    offsets = tokens.offsets + torch.arange(batch + 1, device=device, dtype=torch.int32)
    return Stream(
        RaggedBatch(spread(tokens.values, 0), offsets, length, slots),
        parts + before,
        stream.initial,
        spread(pinned, True),
        None if stream.gates is None else spread(stream.gates, 1),
        tuple(spread(rows, 0) for rows in stream.carried),
        spread(torch.ones(total, device=device), 0),
    )


def merge(stream: Stream, dropped: Tensor) -> Stream:
    """The stream with the tokens of weights `dropped`, [total], in the merged token of each sample."""
    assert stream.sizes is not None
    offsets = stream.tokens.offsets
    last = offsets[1:] - 1
    dropped = dropped.to(stream.sizes.dtype)
    size_before = stream.sizes.index_select(0, last)
    added = sum_parts(dropped[:, None], offsets).squeeze(1)
    size = size_before + added

    def merged(rows: Tensor) -> Tensor:
        sums = sum_parts(rows.float(), offsets, dropped) + rows.index_select(0, last).float() * size_before[:, None]
        mean = sums / size.clamp(min=1)[:, None]
        mean = torch.where(size[:, None] > 0, mean, rows.index_select(0, last).float())
        return rows.index_copy(0, last.long(), mean.to(rows.dtype))

    return replace(
        stream.replace(merged(stream.values)),
        carried=tuple(merged(rows) for rows in stream.carried),
        sizes=stream.sizes.index_copy(0, last.long(), size),
    )
