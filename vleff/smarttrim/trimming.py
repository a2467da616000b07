"""Trimmers: all trimmers of one module, and their runs."""

from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vleff.models.trimming import (
    AttentionControl,
    BlockSpec,
    Controls,
    Stream,
    StreamSpec,
    Trimming,
    TrimmingRun,
)
from vleff.smarttrim.choices import choose_heads, choose_tokens, random_heads, random_tokens
from vleff.smarttrim.execution import Execution
from vleff.smarttrim.masks import key_bias, straight_through
from vleff.smarttrim.record import LayerRecord, RunRecord, layer_record
from vleff.smarttrim.trimmers import HeadTrimmer, TokenTrimmer, View, look_at


class Trimmers(Trimming):
    """All trimmers before the layers of one module.

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
        self.token_trimmers, self.head_trimmers = nn.ModuleDict(), nn.ModuleDict()
        config, by_name = execution.config, {spec.name: spec for spec in specs}
        if config.random_shares is not None:
            return
        for spec in specs:
            rank = max(spec.width // config.reduction, 1)
            other_width = by_name[spec.others[0]].width if spec.others else spec.width
            has_other = bool(spec.others) or spec.modalities == 2
            for number, layer in enumerate(spec.layers):
                if not config.trims_before(number):
                    continue
                if config.tokens:
                    self.token_trimmers[f"{spec.name}_{number}"] = TokenTrimmer(
                        spec.width, other_width if has_other else None, rank, config.initial_logit
                    )
                for block in layer.blocks if config.heads else ():
                    widths = spec.width * spec.modalities
                    if block.memory != spec.name:
                        widths += by_name[block.memory].width * by_name[block.memory].modalities
                    self.head_trimmers[f"{spec.name}_{number}_{block.name}"] = HeadTrimmer(
                        widths, block.heads, rank, config.initial_logit
                    )

    @property
    def is_active(self) -> bool:
        return self.execution.mode != "full"

    @property
    def has_streams(self) -> bool:
        return bool(self.specs)

    def key_bias(self, gates: Tensor) -> Tensor:
        return key_bias(gates)

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

    def token_trimmer(self, stream: str, layer: int) -> TokenTrimmer | None:
        """The one before a layer of a stream, None if there is none."""
        trimmers: Any = self.token_trimmers
        name = f"{stream}_{layer}"
        return trimmers[name] if name in trimmers else None  # noqa: SIM401  a ModuleDict has no get

    def head_trimmer(self, stream: str, layer: int, block: str) -> HeadTrimmer | None:
        """The one of an attention block, None if there is none."""
        trimmers: Any = self.head_trimmers
        name = f"{stream}_{layer}_{block}"
        return trimmers[name] if name in trimmers else None  # noqa: SIM401

    def multiply_adds(self, spec: StreamSpec, layer: int, tokens: Tensor) -> Tensor:
        """float32 [batch], of the trimmers before a layer for so many tokens of each sample."""
        trimmer = self.token_trimmer(spec.name, layer)
        total = tokens * (0 if trimmer is None else trimmer.multiply_adds)
        for block in spec.layers[layer].blocks:
            heads = self.head_trimmer(spec.name, layer, block.name)
            total = total + (0 if heads is None else heads.multiply_adds)
        return total


class Run(TrimmingRun):
    """One pass through the layers of a module."""

    def __init__(self, trimmers: Trimmers, specs: tuple[StreamSpec, ...], streams: dict[str, Stream]) -> None:
        execution = trimmers.execution
        self.specs = specs
        self.trimmers, self.config = trimmers, execution.config
        self.masked = trimmers.mode == "masked"
        self.samples = trimmers.training  # decisions are drawn
        self.differentiable = self.masked or (trimmers.training and torch.is_grad_enabled())
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
        self.given = _next(execution.decisions, trimmers.module)
        self._memory_views: dict[str, View] = {}

    def before_layer(self, number: int, *streams: Stream) -> list[tuple[Stream, Controls]]:
        specs, config = self.specs, self.config
        views: dict[str, View] = {}
        if config.trims_before(number) and config.random_shares is None and (config.tokens or config.heads):
            views = {spec.name: self._view(spec, stream) for spec, stream in zip(specs, streams, strict=True)}
        trimmed, records = {}, {}
        for spec, stream in zip(specs, streams, strict=True):
            record = None
            if spec.layers and config.trims_before(number) and config.tokens:
                stream, record = self._trim_tokens(spec, number, stream, views)
            trimmed[spec.name] = stream
            records[spec.name] = record or layer_record(stream, spec.name, number)
        biases = {
            name: None if stream.gates is None or not self.masked else key_bias(stream.gates)
            for name, stream in trimmed.items()
        }
        result = []
        for spec in specs:
            controls: Controls = {}
            if spec.layers:
                record = records[spec.name]
                for block in spec.layers[number].blocks:
                    heads = self._trim_heads(spec, number, block, trimmed[spec.name], views, record)
                    controls[block.name] = self._control(heads, biases[block.memory])
                self.record.layers.append(record)
            result.append((trimmed[spec.name], controls))
        return result

    def finish(self, *streams: Stream) -> None:
        self.trimmers.last = self.record.detached() if self.differentiable else self.record
        runs = self.trimmers.execution.runs
        if runs is not None:
            runs.append(self.record)

    def _view(self, spec: StreamSpec, stream: Stream) -> View:
        if spec.layers:
            return look_at(stream)
        if spec.name not in self._memory_views:  # a memory stays as it is from layer to layer
            self._memory_views[spec.name] = look_at(stream)
        return self._memory_views[spec.name]

    def _trim_tokens(
        self, spec: StreamSpec, number: int, stream: Stream, views: dict[str, View]
    ) -> tuple[Stream, LayerRecord]:
        given = None if self.given is None else self.given.of(spec.name, number)
        trimmer = self.trimmers.token_trimmer(spec.name, number)
        logits = None
        if trimmer is not None:
            logits = trimmer(views[spec.name], self._other(spec, views))
        if given is not None:
            keep, chances = stream.tokens.gather(given.kept()), logits
        elif logits is not None:
            keep, chances = choose_tokens(logits, self.config, self.samples)
        else:
            keep, chances = random_tokens(stream, self._random_share(spec, "tokens", number), self.samples), None
        pinned = _pinned(stream)
        keep = keep | pinned
        gates = None
        if self.differentiable:
            gates = keep.float() if chances is None else straight_through(keep, chances)
            gates = gates.masked_fill(pinned, 1)
            carried = gates if stream.gates is None else stream.gates * gates
        before = stream
        if self.masked:
            stream = stream.with_gates(carried)
        elif gates is not None:
            stream = stream.weighted(gates).with_gates(carried).compact(keep)
        else:
            stream = stream.compact(keep)
        record = layer_record(stream, spec.name, number)
        if gates is not None:
            record.share_gates, record.share_parts = carried, before.parts
        if self.trimmers.execution.runs is not None:
            record.logits = logits
        return stream, record

    def _trim_heads(
        self,
        spec: StreamSpec,
        number: int,
        block: BlockSpec,
        stream: Stream,
        views: dict[str, View],
        record: LayerRecord,
    ) -> Tensor | None:
        """bool, or 0 and 1 with gradients, [batch, heads]; None if all are kept."""
        if not (self.config.heads and self.config.trims_before(number)):
            return None
        given = None if self.given is None else self.given.of(spec.name, number)
        trimmer = self.trimmers.head_trimmer(spec.name, number, block.name)
        chances = None
        if trimmer is not None:
            batch = stream.tokens.batch_size
            seen = [views[spec.name]] if block.memory == spec.name else [views[spec.name], views[block.memory]]
            logits = trimmer(torch.cat([view.pooled.reshape(batch, -1) for view in seen], 1))
            keep, chances = choose_heads(logits, self.config, self.samples)
            if self.trimmers.execution.runs is not None:
                record.head_logits[block.name] = logits
        elif self.given is None:
            keep = random_heads(stream, self._random_share(spec, block.name, number), block.heads, self.samples)
        if given is not None:
            kept = given.heads.get(block.name)
            if kept is None:
                return None
            keep = kept.detach() > 0.5
        heads = straight_through(keep, chances) if chances is not None and self.differentiable else keep
        record.heads[block.name] = heads
        return heads

    def _control(self, heads: Tensor | None, bias: Tensor | None) -> AttentionControl:
        if heads is None:
            return AttentionControl(key_bias=bias)
        if heads.dtype == torch.bool:
            return AttentionControl(heads, None, bias)
        return AttentionControl(None if self.masked else heads.detach() > 0.5, heads, bias)

    def _other(self, spec: StreamSpec, views: dict[str, View]) -> Tensor | None:
        """[parts, width], for each part the first token of the other modality."""
        if spec.modalities == 2:
            return views[spec.name].first.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        firsts = [views[name].first for name in spec.others]
        return torch.stack(firsts).mean(0) if firsts else None

    def _random_share(self, spec: StreamSpec, what: str, number: int) -> float:
        shares: dict[str, Any] = self.config.random_shares or {}
        name = f"{self.trimmers.module}/{spec.name}"
        if name not in shares or what not in shares[name]:
            raise ValueError(f"argument 'random_shares': expected {name!r} with {what!r}, got {sorted(shares)}")
        return float(shares[name][what][number])


def _without_absent(spec: StreamSpec, there: dict[str, Stream]) -> StreamSpec:
    """A stream as it is in a call that lacks some memories."""
    layers = tuple(
        layer._replace(blocks=tuple(block for block in layer.blocks if block.memory in there)) for layer in spec.layers
    )
    return replace(spec, layers=layers, others=tuple(name for name in spec.others if name in there))


def _next(decisions: deque[RunRecord] | None, module: str) -> RunRecord | None:
    """The run to repeat, None if trimmers decide."""
    if decisions is None:
        return None
    if not decisions or decisions[0].module != module:
        got = f"one of {decisions[0].module!r}" if decisions else "no more"
        raise ValueError(f"argument 'runs': expected one of {module!r} next, got {got}")
    return decisions.popleft()


def _pinned(stream: Stream) -> Tensor:
    """bool [total], the first token of each part and what the stream says."""
    total, starts = stream.values.shape[0], stream.parts[:-1].long()
    starts = torch.where(stream.parts.diff() > 0, starts, total)
    first = torch.zeros(total + 1, dtype=torch.bool, device=starts.device).index_fill_(0, starts, True)[:-1]
    return first if stream.pinned is None else first | stream.pinned
