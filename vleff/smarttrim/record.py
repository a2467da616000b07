"""What a run kept, layer by layer."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vleff.models.trimming import Stream, StreamSpec
from vleff.nn.ragged import RaggedBatch
from vleff.ops.trim_tokens import sum_parts


@dataclass(eq=False)
class LayerRecord:
    """What one layer got of one stream.

    Attributes:
        stream: its name.
        layer: the layer's number.
        tokens: the tokens that are there, without values: [total, 0].
        parts: int32 [parts + 1], where each part begins in `tokens`.
        gates: [total], of `tokens`, None if all are kept.
        merges: whether the last token of each sample stands for dropped ones.
        share_gates, share_parts: in training the gates, with gradients, of all tokens that were there before this
            layer, and where each part begins in them; None otherwise.
        logits: float32, of the tokens that were scored; None if none were, or without gradients.
        heads: for each attention block, bool or 0 and 1 with gradients, [batch, heads]; a block that keeps all is
            left out.
        head_logits: for each attention block that has them, float32 [batch, heads].
    """

    stream: str
    layer: int
    tokens: RaggedBatch
    parts: Tensor
    gates: Tensor | None
    merges: bool = False
    share_gates: Tensor | None = None
    share_parts: Tensor | None = None
    logits: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    head_logits: dict[str, Tensor] = field(default_factory=dict)

    def detached(self) -> "LayerRecord":
        """The same without gradients."""

        def detach(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach()

        return replace(
            self,
            gates=detach(self.gates),
            share_gates=detach(self.share_gates),
            logits=detach(self.logits),
            heads={name: kept.detach() for name, kept in self.heads.items()},
            head_logits={name: logits.detach() for name, logits in self.head_logits.items()},
        )

    def kept_tokens(self) -> Tensor:
        """float32 [batch], tokens of each sample that the layer works on, with gradients in training."""
        batch = self.tokens.batch_size
        if self.share_gates is not None and self.share_parts is not None:
            counts = sum_parts(self.share_gates[:, None].float(), self.share_parts).squeeze(1)
        elif self.gates is not None:
            counts = sum_parts(self.gates[:, None].float(), self.parts).squeeze(1)
        else:
            counts = self.parts.diff().float()
        return counts.view(batch, -1).sum(1)

    def kept(self) -> Tensor:
        """bool [batch, length], the tokens that the layer works on at their places in the padded batch."""
        gates = self.tokens.values.new_ones(self.tokens.values.shape[0]) if self.gates is None else self.gates
        kept = self.tokens.replace(gates.detach()).unpack() > 0.5
        return kept[:, :-1] if self.merges else kept


@dataclass(eq=False)
class RunRecord:
    """One pass through the layers of one module.

    Attributes:
        module: its path in the model.
        specs: its streams.
        batch_size: samples.
        initial: for each stream int32 [parts], tokens of each part before any was dropped.
        memories: for each stream without layers float32 [batch], its tokens, with gradients in training.
        layers: in their order; of each layer all streams that have it.
    """

    module: str
    specs: tuple[StreamSpec, ...]
    batch_size: int
    initial: dict[str, Tensor]
    memories: dict[str, Tensor] = field(default_factory=dict)
    layers: list[LayerRecord] = field(default_factory=list)

    def detached(self) -> "RunRecord":
        """The same without gradients."""
        memories = {name: tokens.detach() for name, tokens in self.memories.items()}
        return replace(self, memories=memories, layers=[record.detached() for record in self.layers])

    def initial_tokens(self, stream: str) -> Tensor:
        """float32 [batch], tokens of each sample before any was dropped."""
        return self.initial[stream].float().view(self.batch_size, -1).sum(1)

    def spec(self, stream: str) -> StreamSpec:
        """The spec of a stream."""
        return next(spec for spec in self.specs if spec.name == stream)

    def of(self, stream: str, layer: int) -> LayerRecord | None:
        """The record of one layer of a stream, None if there is none."""
        fitting = (record for record in self.layers if record.stream == stream and record.layer == layer)
        return next(fitting, None)


def layer_record(stream: Stream, name: str, layer: int) -> LayerRecord:
    """The record of a layer that gets this stream."""
    tokens = stream.tokens.replace(stream.values.detach()[:, :0])
    return LayerRecord(name, layer, tokens, stream.parts, stream.gates, stream.sizes is not None)


def token_share(runs: list[RunRecord]) -> Tensor:
    """The share of tokens kept, a number: averaged over samples, layers and streams."""
    shares = []
    for run in runs:
        for record in run.layers:
            initial = run.initial_tokens(record.stream)
            shares.append((record.kept_tokens() / initial.clamp(min=1)).mean())
    return torch.stack(shares).mean()


def head_share(runs: list[RunRecord]) -> Tensor:
    """The share of heads kept, a number: averaged over samples, layers and attention blocks."""
    shares = []
    for run in runs:
        for record in run.layers:
            for block in run.spec(record.stream).layers[record.layer].blocks:
                kept = record.heads.get(block.name)
                shares.append(torch.ones(()) if kept is None else kept.float().mean())
    return torch.stack([share.to(shares[-1].device) for share in shares]).mean()
