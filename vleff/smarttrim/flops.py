"""Multiply-adds of layers and trimmers, from the tokens and heads that a run kept."""

import torch
from torch import Tensor

from vleff.models.trimming import BlockSpec
from vleff.smarttrim.record import RunRecord
from vleff.smarttrim.trimming import Trimmers


def block_multiply_adds(block: BlockSpec, width: int, queries: Tensor, keys: Tensor, heads: Tensor | float) -> Tensor:
    """Of one attention block: projections of kept heads, and the two products of the attention.

    Args:
        width: of the queries' tokens.
        queries, keys, heads: float32 [batch], of each sample.
    """
    inner = heads * block.head_dim
    return inner * (2 * queries * width + 2 * keys * block.memory_width + 2 * queries * keys)


def kept_multiply_adds(run: RunRecord, trimmers: Trimmers) -> Tensor:
    """float32 [batch], multiply-adds of the layers and the trimmers of a run, with gradients in training.

    Args:
        trimmers: those that made the run.
    """
    total = _zeros(run)
    for record in run.layers:
        spec = run.spec(record.stream)
        layer, queries = spec.layers[record.layer], record.kept_tokens()
        total = total + queries * layer.feed_forward
        for block in layer.blocks:
            kept = record.heads.get(block.name)
            heads = float(block.heads) if kept is None else kept.float().sum(1)
            keys = _memory_tokens(run, block, record.layer)
            total = total + block_multiply_adds(block, spec.width, queries, keys, heads)
        before = run.of(record.stream, record.layer - 1)
        scored = run.initial_tokens(record.stream) if before is None else before.kept_tokens().detach()
        total = total + trimmers.trimmers.multiply_adds(spec, record.layer, scored)
    return total


def full_multiply_adds(run: RunRecord) -> Tensor:
    """float32 [batch], multiply-adds of the layers of a run had nothing been dropped, without trimmers."""
    total = _zeros(run)
    for record in run.layers:
        spec, queries = run.spec(record.stream), run.initial_tokens(record.stream)
        layer = spec.layers[record.layer]
        total = total + queries * layer.feed_forward
        for block in layer.blocks:
            keys = run.initial_tokens(block.memory)
            total = total + block_multiply_adds(block, spec.width, queries, keys, float(block.heads))
    return total


def _zeros(run: RunRecord) -> Tensor:
    return torch.zeros(run.batch_size, device=next(iter(run.initial.values())).device)


def _memory_tokens(run: RunRecord, block: BlockSpec, layer: int) -> Tensor:
    record = run.of(block.memory, layer)
    return run.memories[block.memory] if record is None else record.kept_tokens()


def flop_ratio(runs: list[RunRecord], trimmers: list[Trimmers]) -> Tensor:
    """The share of multiply-adds of all layers that runs of one or more forwards did, trimmers' own included."""
    by_module = {one.module: one for one in trimmers}
    kept = torch.stack([kept_multiply_adds(run, by_module[run.module]).sum() for run in runs]).sum()
    return kept / torch.stack([full_multiply_adds(run).sum() for run in runs]).sum()
