"""The queries and keys of a model's last layer, recorded while it runs, packed or padded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vleff.models.layer import AttentionParts, PackedLayer
from vleff.models.registry import base_models
from vleff.nn.ragged import RaggedBatch
from vleff.ops.fused_linear import FEWEST_ROWS


def last_attention(model: nn.Module) -> AttentionParts:
    """The pieces of the last self attention in a model of a known family, accelerated or not.

    Raises:
        TypeError: there is none, or one linear layer makes its queries and keys together.
    """
    found: AttentionParts | None = None
    for _, base, adapter in base_models(model):
        packed_classes = adapter.packed_classes | {packed: packed for packed in adapter.packed_classes.values()}
        for module in base.modules():
            # fully_shard makes a layer an instance of a subclass
            packed: Any = next((packed_classes[kind] for kind in type(module).__mro__ if kind in packed_classes), None)
            if packed is not None and issubclass(packed, PackedLayer) and not packed.optional:
                found = packed.parts(module).attention
    if found is None or found.query is None or found.key is None:
        raise TypeError(
            "model: expected one whose last layer has linear layers for queries and for keys, got "
            f"{type(model).__name__}"
        )
    return found


class Recording:
    """What one attention computed, call by call.

    Attributes:
        head_dim: of its heads.
        queries, keys: what the linear layers returned in each call, [batch, length, heads * head_dim] of a padded
            batch, or [rows, heads * head_dim] of a packed one.
    """

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []

    def fits(self, call: int, mask: Tensor) -> bool:
        """Whether a call had the tokens that a mask [batch, length] says."""
        recorded = self.queries[call]
        if recorded.dim() == 3:
            return recorded.shape[:2] == mask.shape
        return recorded.shape[0] == max(int(mask.sum()), FEWEST_ROWS) or recorded.shape[0] == int(mask.sum())

    def ragged(self, call: int, mask: Tensor) -> tuple[RaggedBatch, RaggedBatch]:
        """Queries and keys of a call without padding, values [tokens, heads, head_dim].

        Args:
            call: its number.
            mask: bool [batch, length], False at padding.
        """
        return self._ragged(self.queries[call], mask), self._ragged(self.keys[call], mask)

    def padded_queries(self, call: int) -> Tensor:
        """The queries of a call at all positions, [batch, length, heads, head_dim].

        Raises:
            ValueError: the model ran packed, without its padding.
        """
        if self.queries[call].dim() != 3:
            raise ValueError("padded queries: expected a model that is not accelerated, which leaves padding out")
        return self.queries[call].unflatten(-1, (-1, self.head_dim))

    def _ragged(self, recorded: Tensor, mask: Tensor) -> RaggedBatch:
        by_head = (-1, self.head_dim)
        if recorded.dim() == 3:
            return RaggedBatch.pack(recorded.unflatten(-1, by_head), mask)
        places = RaggedBatch.pack(torch.empty(*mask.shape, 0, device=mask.device), mask)
        # there may be more rows than tokens, to fill up a short batch
        return places.replace(recorded[: places.values.shape[0]].unflatten(-1, by_head))


@contextmanager
def record_queries_and_keys(model: nn.Module) -> Iterator[Recording]:
    """Records the queries and keys of a model's last layer, with their gradients, while the context is open.

    Raises:
        TypeError: as `last_attention`.
    """
    parts = last_attention(model)
    recording = Recording(parts.head_dim)
    assert parts.query is not None and parts.key is not None
    hooks = [
        linear.register_forward_hook(lambda _, inputs, output, kept=kept: kept.append(output))
        for linear, kept in ((parts.query, recording.queries), (parts.key, recording.keys))
    ]
    try:
        yield recording
    finally:
        for hook in hooks:
            hook.remove()
