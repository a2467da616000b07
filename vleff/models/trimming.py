"""How a method that drops tokens and heads layer by layer takes part in the packed computation.

A `Trimming` hangs on the module that holds the loop over its layers, as its submodule `trimming`. That module packs
its streams of tokens, begins a run, and before each layer hands the streams over; it gets back shorter ones and, for
each attention block of the layer, an `AttentionControl`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vleff.nn.pending_count import can_wait_for
from vleff.nn.ragged import RaggedBatch

_STREAM, _MEMORY, _INITIAL = "_vleff_stream", "_vleff_memory", "_vleff_initial"


class BlockSpec(NamedTuple):
    """One attention block of a layer.

    Attributes:
        name: "own" for self attention, "cross" for cross attention; others where a layer has several.
        heads, head_dim: sizes.
        memory: the name of the stream whose tokens are asked.
        memory_width: the width of that stream.
    """

    name: str
    heads: int
    head_dim: int
    memory: str
    memory_width: int


class LayerSpec(NamedTuple):
    """What one layer does to a stream.

    Attributes:
        blocks: its attention blocks.
        feed_forward: multiply-adds of its feed-forward for each token.
    """

    blocks: tuple[BlockSpec, ...]
    feed_forward: int


@dataclass(frozen=True)
class StreamSpec:
    """A stream of tokens that passes through layers.

    Attributes:
        name: of the stream within its module.
        width: of its tokens.
        layers: empty for a memory that is only looked at.
        modalities: how many modalities each sample has in this stream, one after the other.
        others: the names of the streams that hold the other modality, if it is not in this one.
    """

    name: str
    width: int
    layers: tuple[LayerSpec, ...]
    modalities: int = 1
    others: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Stream:
    """The tokens of one stream on their way through the layers.

    Attributes:
        tokens: values [total, width].
        parts: int32 [batch * modalities + 1], where each modality of each sample begins in `tokens`.
        initial: int32 [batch * modalities], tokens of each part before any was dropped.
        pinned: bool [total], tokens that are never dropped; None if only the first of each part.
        gates: [total], 1 for a token that is kept and 0 for one that is dropped but still there, with gradients;
            None if all that are there are kept.
        carried: more values [total, ...] of the same tokens.
        sizes: float32 [total], as how many tokens each counts in the attention; None if all count as one. The last
            token of each sample then stands for merged ones, and is no place of the padded batch.
    """

    tokens: RaggedBatch
    parts: Tensor
    initial: Tensor
    pinned: Tensor | None = None
    gates: Tensor | None = None
    carried: tuple[Tensor, ...] = ()
    sizes: Tensor | None = None

    @classmethod
    def pack(
        cls, padded: Tensor, mask: Tensor | None = None, first: int | None = None, pinned: Tensor | None = None
    ) -> "Stream":
        """The tokens of a padded batch.

        Args:
            padded: [batch, length, width].
            mask: bool [batch, length], False at padding; None without any.
            first: the length of the first modality in the padded batch, if there are two.
            pinned: bool [batch, length], tokens that are never dropped.
        """
        tokens = RaggedBatch.pack(padded, mask)
        if first is None:
            parts = tokens.offsets
        else:
            batch, length = padded.shape[:2]
            if mask is None:
                counts = tokens.offsets.new_tensor([first, length - first]).repeat(batch)
            else:
                counts = torch.stack([mask[:, :first].sum(1), mask[:, first:].sum(1)], 1).flatten()
            parts = pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        rows = None if pinned is None else tokens.gather(pinned)
        return cls(tokens, parts, parts.diff(), rows)

    @property
    def values(self) -> Tensor:
        """[total, width]"""
        return self.tokens.values

    @property
    def modalities(self) -> int:
        """How many parts each sample has."""
        return (self.parts.shape[0] - 1) // max(self.tokens.batch_size, 1)

    def replace(self, values: Tensor) -> "Stream":
        """Other values for the same tokens."""
        return replace(self, tokens=self.tokens.replace(values))

    def with_gates(self, gates: Tensor) -> "Stream":
        """The same tokens with other gates [total]."""
        return replace(self, gates=gates)

    def every_other_sample(self, first: int) -> "Stream":
        """The samples first, first + 2, ... of a stream with one modality."""
        tokens, lengths = self.tokens, self.parts.diff()
        rows = torch.arange(lengths.shape[0], device=lengths.device)
        rows = rows.repeat_interleave(lengths, output_size=tokens.values.shape[0]) % 2 == first
        chosen = rows.nonzero().squeeze(1)
        parts = pad(lengths[first::2].cumsum(0, dtype=torch.int32), (1, 0))
        slots = tokens.positions + tokens.max_length * (tokens.samples // 2)
        return Stream(
            RaggedBatch(tokens.values.index_select(0, chosen), parts, tokens.max_length, slots.index_select(0, chosen)),
            parts,
            self.initial[first::2],
            None,
            None if self.gates is None else self.gates.index_select(0, chosen),
        )

    def compact(self, keep: Tensor) -> "Stream":
        """Only the tokens that `keep`, bool [total], says."""
        parts = pad(keep.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, self.parts)
        return self.select(keep.nonzero().squeeze(1), parts)

    def select(self, survivors: Tensor, parts: Tensor) -> "Stream":
        """Only the tokens with these row numbers, ascending, of which parts [parts + 1] say where each part begins."""
        if can_wait_for(survivors) and survivors.shape[0] == self.values.shape[0]:
            return self

        def select(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows.index_select(0, survivors)

        modalities = self.modalities
        return replace(
            self,
            tokens=self.tokens.select(survivors, parts if modalities == 1 else parts[::modalities].contiguous()),
            parts=parts,
            pinned=select(self.pinned),
            gates=select(self.gates),
            carried=tuple(rows.index_select(0, survivors) for rows in self.carried),
            sizes=select(self.sizes),
        )

    def without_merged(self) -> "Stream":
        """Without the tokens that stand for merged ones."""
        if self.sizes is None:
            return self
        last = (self.tokens.offsets[1:] - 1).long()
        stream = self.compact(torch.ones_like(self.sizes, dtype=torch.bool).index_fill_(0, last, False))
        tokens, length = stream.tokens, stream.tokens.max_length - 1
        slots = tokens.samples * length + tokens.positions
        return replace(stream, tokens=RaggedBatch(tokens.values, tokens.offsets, length, slots), sizes=None)

    def weighted(self, weights: Tensor) -> "Stream":
        """All values times weights [total]."""
        column = weights[:, None].to(self.values.dtype)
        return replace(self.replace(self.values * column), carried=tuple(rows * column for rows in self.carried))

    def with_carried(self, values: Tensor, *carried: Tensor) -> "Stream":
        """Other values for the same tokens, and more values of them."""
        return replace(self.replace(values), carried=carried)

    def unpack(self) -> Tensor:
        """[batch, length, width], zeros at padding and where tokens were dropped."""
        padded = (self if self.gates is None else self.weighted(self.gates)).tokens.unpack()
        return padded if self.sizes is None else padded[:, :-1]


@dataclass(frozen=True)
class AttentionControl:
    """What an attention block leaves out.

    Attributes:
        head_mask: bool [batch, heads], False for a head that is not computed.
        head_gates: [batch, heads], factors of the heads' contexts, with gradients.
        key_bias: float32 [total keys], added to the logits of a key.
    """

    head_mask: Tensor | None = None
    head_gates: Tensor | None = None
    key_bias: Tensor | None = None


Controls = dict[str, AttentionControl]


class TrimmingRun:
    """One pass through the layers of a module."""

    def before_layer(self, number: int, *streams: Stream) -> list[tuple[Stream, Controls]]:
        """The streams as layer `number` gets them, each with what its attention blocks leave out."""
        raise NotImplementedError

    def finish(self, *streams: Stream) -> None:
        """Told once, after the last layer."""


class Trimming(nn.Module):
    """What drops tokens and heads before the layers of one module."""

    @property
    def is_active(self) -> bool:
        """Whether the next call drops anything; if not, the module runs as without a trimming."""
        raise NotImplementedError

    @property
    def has_streams(self) -> bool:
        """Whether it drops something here, or only tells a decoder that its memory was trimmed."""
        raise NotImplementedError

    def key_bias(self, gates: Tensor) -> Tensor:
        """float32 [total], what hides the keys that gates [total] drop, with gradients."""
        raise NotImplementedError

    def begin(self, *streams: Stream | None) -> TrimmingRun:
        """Begins a run on the streams, in the order of `Trimmable.streams`; a memory that a call lacks is None."""
        raise NotImplementedError

    def explain(self) -> str:
        """What it dropped, for people."""
        raise NotImplementedError


class Trimmable:
    """A module whose loop over its layers runs a trimming."""

    # whether its streams are those of modules inside it, which are then not trimmed for themselves
    holds_streams_inside: ClassVar[bool] = False

    def streams(self) -> tuple[StreamSpec, ...]:
        """Its streams; those without layers come last. Empty if it cannot be trimmed."""
        return ()


def install(module: nn.Module, trimming: Trimming) -> None:
    """Hangs a trimming on a module that is `Trimmable`."""
    module.trimming = trimming


def uninstall(module: nn.Module) -> None:
    """Takes the trimming off a module."""
    del module.trimming


def active_trimming(module: Any) -> Trimming | None:
    """The trimming of a module if it has one that is active."""
    trimming = getattr(module, "trimming", None)
    return trimming if trimming is not None and trimming.is_active else None


def refuse_watchers(arguments: dict[str, Any], config: Any, reason: str | None = None) -> None:
    """For calls while a trimming is active that ask for what it does not give.

    Args:
        arguments: of the call.
        config: whose defaults hold where the call says nothing.
        reason: something else that the packed computation does not cover.

    Raises:
        ValueError: always if there is a `reason`; else if attentions, hidden states or a cache are asked for.
    """
    for name in ("output_attentions", "output_hidden_states"):
        value = arguments.get(name)
        if value or (value is None and getattr(config, name, False)):
            reason = f"{name}=True"
    if reason is not None:
        raise ValueError(
            f"{reason}: expected a call that runs packed, because trimmers are attached and active; detach them, "
            "or run the model at full capacity"
        )


def remember_stream(padded: Tensor, stream: Stream) -> Tensor:
    """Lets whoever gets exactly this padded tensor know the stream that it was unpacked from.

    It goes on with that stream where gates tell which of its tokens are dropped but still there. Tensors of
    torch.inference_mode do not tell whether they were changed since: there it goes by the zeros of dropped tokens.
    """
    setattr(padded, _INITIAL, stream.initial)
    if stream.gates is not None and not padded.is_inference():
        setattr(padded, _STREAM, (stream.without_merged(), padded._version))
    return padded


def stream_of(padded: Tensor) -> Stream | None:
    """The stream of a padded tensor, None if it is not known or the tensor was changed since."""
    stream, version = getattr(padded, _STREAM, (None, 0))
    return stream if stream is not None and padded._version == version else None


def visible_rows(padded: Tensor) -> Tensor:
    """bool [batch, length], the rows of a padded batch [batch, length, width] that are not zeros: a trimmed module
    leaves zeros where it dropped tokens."""
    return (padded != 0).any(-1)


def memory_stream(padded: Tensor, mask: Tensor | None) -> Stream:
    """A memory as an encoder gets it from one that may have been trimmed, without what was dropped there.

    Args:
        padded: [batch, length, width].
        mask: bool [batch, length], False at padding; None without any.
    """
    stream = stream_of(padded)
    if stream is None:
        visible = visible_rows(padded)
        stream = Stream.pack(padded, visible if mask is None else visible & mask)
        return replace(stream, initial=getattr(padded, _INITIAL, stream.initial))
    return stream if mask is None else stream.compact(stream.tokens.gather(mask))


def memory_for_decoder(padded: Tensor, mask: Tensor | None, trimming: Trimming) -> tuple[Tensor, Tensor]:
    """A memory that may have been trimmed, and a mask for it, for a decoder that is not packed.

    Args:
        padded: [batch, length, width].
        mask: bool [batch, length], False at padding; None without any.

    Returns:
        the memory, only as long as the sample with most tokens left, and a bool mask for it; in training, where some
        tokens are dropped but still there, the whole memory and a mask to add, [batch, 1, 1, length].
    """
    stream = stream_of(padded)
    if stream is not None and mask is not None:
        stream = stream.compact(stream.tokens.gather(mask))
    if stream is not None and stream.gates is not None:
        there = stream.tokens.replace(torch.ones_like(stream.gates, dtype=torch.bool)).unpack()
        bias = stream.tokens.replace(trimming.key_bias(stream.gates)).unpack()
        bias = bias.masked_fill(~there, torch.finfo(bias.dtype).min)
        return stream.tokens.unpack(), bias[:, None, None, :].to(padded.dtype)
    known = getattr(padded, _MEMORY, None)
    if known is not None and known[0] == padded._version and _same(known[1], mask):
        return known[2]
    visible = visible_rows(padded)
    visible = visible if mask is None else visible & mask
    length = int(visible.sum(1).max())
    order = visible.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :length]
    index = order[:, :, None].expand(-1, -1, padded.shape[2])
    shorter = padded.gather(1, index), visible.gather(1, order)
    if not padded.is_inference():  # a decoder asks again for each token that it makes
        setattr(padded, _MEMORY, (padded._version, mask, shorter))
    return shorter


def _same(mask: Tensor | None, other: Tensor | None) -> bool:
    return mask is other or (mask is not None and other is not None and torch.equal(mask, other))


def layer_spec(blocks: Sequence[BlockSpec], feed_forward: Any) -> LayerSpec:
    """The spec of a layer with a `FeedForwardParts`."""
    products = 2 if feed_forward.gate is None else 3
    intermediate = feed_forward.intermediate
    return LayerSpec(tuple(blocks), products * intermediate.in_features * intermediate.out_features)


def block_spec(name: str, attention: Any, memory: str, memory_width: int) -> BlockSpec:
    """The spec of a block with an `AttentionParts`."""
    width = attention.output.in_features
    return BlockSpec(name, width // attention.head_dim, attention.head_dim, memory, memory_width)
