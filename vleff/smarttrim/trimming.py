"""Trimmers: what attach hangs on a module, and its runs."""

from collections import deque
from dataclasses import replace

import torch
from torch import Tensor

from vleff.models.trimming import (
    AttentionControl,
    BlockSpec,
    Controls,
    Stream,
    StreamSpec,
    Trimming,
    TrimmingRun,
)
from vleff.smarttrim.deciders import (
    Decider,
    HeadDecision,
    Learned,
    LearnedByKernels,
    Random,
    Repeated,
    TokenDecision,
    pinned_tokens,
)
from vleff.smarttrim.execution import Execution
from vleff.smarttrim.masks import key_bias, limited, straight_through
from vleff.smarttrim.merging import merge, with_merged_token
from vleff.smarttrim.record import LayerRecord, RunRecord, layer_record
from vleff.smarttrim.trimmer_set import TrimmerSet


class Trimmers(Trimming):
    """The trimmers of one module.

    Attributes:
        module: the module's path in the model.
        specs: its streams.
        execution: shared by all trimmers of the model.
        last: the record of the last run.
    """

    def __init__(self, module: str, specs: tuple[StreamSpec, ...], execution: Execution) -> None:
        super().__init__()
        self.module, self.specs, self.execution = module, specs, execution
        self.last: RunRecord | None = None
        self.trimmers = TrimmerSet(specs, execution.config)

    @property
    def is_active(self) -> bool:
        return self.execution.mode != "full"

    @property
    def has_streams(self) -> bool:
        return bool(self.specs)

    def key_bias(self, gates: Tensor) -> Tensor:
        return key_bias(limited(gates))

    @property
    def mode(self) -> str:
        """How the next run computes, "masked" or "gathered"."""
        return self.execution.mode or (self.execution.config.training if self.training else "gathered")

    def begin(self, *streams: Stream | None) -> "Run":
        there = {spec.name: stream for spec, stream in zip(self.specs, streams, strict=True) if stream is not None}
        return Run(self, tuple(_without_absent(spec, there) for spec in self.specs if spec.name in there), there)

    def explain(self) -> str:
        from vleff.smarttrim.report import explain

        return explain(self)


class Run(TrimmingRun):
    """One pass through the layers of a module."""

    def __init__(self, trimmers: Trimmers, specs: tuple[StreamSpec, ...], streams: dict[str, Stream]) -> None:
        self.trimmers, self.specs, self.config = trimmers, specs, trimmers.execution.config
        self.masked = trimmers.mode == "masked"
        self.differentiable = self.masked or (trimmers.training and torch.is_grad_enabled())
        self.decider = self._decider()
        self.record = RunRecord(
            trimmers.module,
            specs,
            streams[specs[0].name].tokens.batch_size,
            {name: stream.initial for name, stream in streams.items()},
            {
                spec.name: layer_record(streams[spec.name], spec.name, -1).kept_tokens()
                for spec in specs
                if not spec.layers
            },
        )

    def _decider(self) -> Decider:
        trimmers, execution, samples = self.trimmers, self.trimmers.execution, self.trimmers.training
        learned = Learned(trimmers.trimmers, self.config, samples) if self.config.random_shares is None else None
        if execution.decisions is not None:
            return Repeated(_next(execution.decisions, trimmers.module), learned if self.differentiable else None)
        if learned is None:
            return Random(trimmers.module, self.config, samples)
        return learned if self.differentiable or samples else LearnedByKernels(trimmers.trimmers, self.config)

    def before_layer(self, number: int, *streams: Stream) -> list[tuple[Stream, Controls]]:
        there = {
            spec.name: self._merging(stream) if spec.layers else stream
            for spec, stream in zip(self.specs, streams, strict=True)
        }
        trims = self.config.trims_before(number)
        if trims:
            self.decider.look(self.specs, there)
        with_layers = [spec for spec in self.specs if spec.layers and trims]
        tokens = {
            spec.name: self.decider.tokens(spec, number, there[spec.name]) for spec in with_layers if self.config.tokens
        }
        heads = {
            (spec.name, block.name): self.decider.heads(spec, number, block, there[spec.name])
            for spec in with_layers
            if self.config.heads
            for block in spec.layers[number].blocks
        }
        trimmed, records = {}, {}
        for spec in self.specs:
            stream, record = there[spec.name], None
            if spec.name in tokens:  # from here on the host waits for the device
                stream, record = self._trim_tokens(spec, number, stream, tokens[spec.name])
            trimmed[spec.name], records[spec.name] = stream, record or layer_record(stream, spec.name, number)
        biases = {name: self._bias(stream) for name, stream in trimmed.items()}
        result = []
        for spec in self.specs:
            controls: Controls = {}
            if spec.layers:
                record = records[spec.name]
                for block in spec.layers[number].blocks:
                    kept = self._trim_heads(block, heads.get((spec.name, block.name)), record)
                    controls[block.name] = self._control(kept, biases[block.memory])
                self.record.layers.append(record)
            result.append((trimmed[spec.name], controls))
        return result

    def finish(self, *streams: Stream) -> None:
        self.trimmers.last = self.record.detached() if self.differentiable else self.record
        runs = self.trimmers.execution.runs
        if runs is not None:
            runs.append(self.record)

    def _trim_tokens(
        self, spec: StreamSpec, number: int, before: Stream, decision: TokenDecision
    ) -> tuple[Stream, LayerRecord]:
        gates = None
        if self.differentiable:
            stream, gates = self._gated(before, decision)
        elif decision.survivors is not None and decision.kept_parts is not None:
            survivors = decision.survivors
            if decision.pending is not None:
                survivors = survivors[: decision.pending.wait()]
            if before.sizes is not None:
                dropped = torch.ones_like(before.sizes).index_fill(0, survivors.long(), 0)
                before = merge(before, dropped)
            stream = before.select(survivors, decision.kept_parts)
        else:
            assert decision.keep is not None
            if before.sizes is not None:
                before = merge(before, ~decision.keep)
            stream = before.compact(decision.keep)
        record = layer_record(stream, spec.name, number)
        if gates is not None:
            record.share_gates, record.share_parts = gates, before.parts
        if self.trimmers.execution.runs is not None:
            record.logits = decision.logits
        return stream, record

    def _gated(self, stream: Stream, decision: TokenDecision) -> tuple[Stream, Tensor]:
        """The stream with straight-through gates, compacted unless masked, and the gates of all that were there."""
        keep, chances = decision.keep, decision.chances
        assert keep is not None
        gates = keep.float() if chances is None else straight_through(keep, chances)
        gates = gates.masked_fill(pinned_tokens(stream), 1)
        together = gates if stream.gates is None else stream.gates * gates
        if stream.sizes is not None:
            stream = merge(stream, (1 if stream.gates is None else stream.gates) - together)
        if self.masked:
            return stream.with_gates(together), together
        return stream.weighted(gates).with_gates(together).compact(keep), together

    def _trim_heads(self, block: BlockSpec, decision: HeadDecision | None, record: LayerRecord) -> Tensor | None:
        """bool, or 0 and 1 with gradients, [batch, heads]; None if all are kept."""
        if decision is None:
            return None
        heads = decision.keep
        if self.differentiable and decision.chances is not None:
            heads = straight_through(heads, decision.chances)
        record.heads[block.name] = heads
        if self.trimmers.execution.runs is not None and decision.logits is not None:
            record.head_logits[block.name] = decision.logits
        return heads

    def _merging(self, stream: Stream) -> Stream:
        merges = self.config.merge_dropped and self.config.tokens and stream.sizes is None
        return with_merged_token(stream) if merges else stream

    def _bias(self, stream: Stream) -> Tensor | None:
        """float32 [total], added to the logits of its tokens as keys."""
        weights = limited(stream.gates) if self.masked and stream.gates is not None else None
        if stream.sizes is not None:
            weights = stream.sizes if weights is None else weights * stream.sizes
        return None if weights is None else key_bias(weights)

    def _control(self, heads: Tensor | None, bias: Tensor | None) -> AttentionControl:
        if heads is None:
            return AttentionControl(key_bias=bias)
        if heads.dtype == torch.bool:
            return AttentionControl(heads, None, bias)
        return AttentionControl(None if self.masked else heads.detach() > 0.5, heads, bias)


def _without_absent(spec: StreamSpec, there: dict[str, Stream]) -> StreamSpec:
    """A stream as it is in a call that lacks some memories."""
    layers = tuple(
        layer._replace(blocks=tuple(block for block in layer.blocks if block.memory in there)) for layer in spec.layers
    )
    return replace(spec, layers=layers, others=tuple(name for name in spec.others if name in there))


def _next(decisions: deque[RunRecord], module: str) -> RunRecord:
    if not decisions or decisions[0].module != module:
        got = f"one of {decisions[0].module!r}" if decisions else "no more"
        raise ValueError(f"argument 'runs': expected one of {module!r} next, got {got}")
    return decisions.popleft()
