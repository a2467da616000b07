"""Who decides in a run which tokens and heads are kept: trimmers, chance, or another run."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vleff.models.trimming import BlockSpec, Stream, StreamSpec
from vleff.nn.pending_count import PendingCount, can_wait_for
from vleff.ops.trim_tokens import first_of_parts
from vleff.smarttrim.choices import choose_heads, choose_tokens, random_heads, random_tokens
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.record import RunRecord
from vleff.smarttrim.trimmer_set import TrimmerSet
from vleff.smarttrim.trimmers import View, first_of_stream, look_at

Streams = dict[str, Stream]
Specs = tuple[StreamSpec, ...]


class TokenDecision(NamedTuple):
    """Which tokens of a stream stay: `keep`, or `survivors` and `kept_parts`.

    Attributes:
        keep: bool [total].
        chances: float32 [total], logits whose sigmoids are the gradients of `keep`; None if there are none.
        logits: float32 [total], of the trimmer; None if it was not asked.
        survivors: int32 [kept], row numbers; on a GPU of room for all tokens.
        kept_parts: int32 [parts + 1], where each part begins among them.
        pending: the number of survivors, where it is on its way from a GPU.
    """

    keep: Tensor | None = None
    chances: Tensor | None = None
    logits: Tensor | None = None
    survivors: Tensor | None = None
    kept_parts: Tensor | None = None
    pending: PendingCount | None = None


class HeadDecision(NamedTuple):
    """Which heads stay: `keep` bool [batch, heads], and as of TokenDecision."""

    keep: Tensor
    chances: Tensor | None = None
    logits: Tensor | None = None


class Decider:
    """Decides for one run. Before each layer it looks at all streams, then decides for each."""

    def look(self, specs: Specs, streams: Streams) -> None:
        """Looks at the streams as the layer before left them."""

    def tokens(self, spec: StreamSpec, layer: int, stream: Stream) -> TokenDecision:
        raise NotImplementedError

    def heads(self, spec: StreamSpec, layer: int, block: BlockSpec, stream: Stream) -> HeadDecision | None:
        """None if all heads stay."""
        raise NotImplementedError


class Learned(Decider):
    """Trimmers decide, with gradients."""

    def __init__(self, trimmers: TrimmerSet, config: SmartTrimConfig, samples: bool) -> None:
        self.trimmers, self.config, self.samples = trimmers, config, samples
        self._views: dict[str, View] = {}

    def look(self, specs: Specs, streams: Streams) -> None:
        for spec in specs:
            if spec.layers or spec.name not in self._views:  # a memory stays as it is from layer to layer
                self._views[spec.name] = look_at(streams[spec.name])

    def tokens(self, spec: StreamSpec, layer: int, stream: Stream) -> TokenDecision:
        other = None
        if spec.modalities == 2:
            other = self._views[spec.name].first.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        elif spec.others:
            other = torch.stack([self._views[name].first for name in spec.others]).mean(0)
        logits = self.trimmers.of_tokens(spec.name, layer)(self._views[spec.name], other)
        keep, chances = choose_tokens(logits, self.config, self.samples)
        return TokenDecision(keep | pinned_tokens(stream), chances, logits)

    def heads(self, spec: StreamSpec, layer: int, block: BlockSpec, stream: Stream) -> HeadDecision | None:
        batch = stream.tokens.batch_size
        seen = dict.fromkeys((spec.name, block.memory))
        pooled = [self._views[name].pooled.reshape(batch, -1) for name in seen]
        logits = self.trimmers.of_heads(spec.name, layer, block.name)(pooled)
        return HeadDecision(*choose_heads(logits, self.config, self.samples), logits)


class LearnedByKernels(Decider):
    """Trimmers decide at inference, each in one kernel."""

    def __init__(self, trimmers: TrimmerSet, config: SmartTrimConfig) -> None:
        self.trimmers, self.config = trimmers, config
        self._first: dict[str, Tensor] = {}
        self._pooled: dict[str, Tensor] = {}

    def look(self, specs: Specs, streams: Streams) -> None:
        others = {name for spec in specs if spec.layers for name in spec.others}
        for spec in specs:
            stream = streams[spec.name]
            if spec.name in others and (spec.layers or spec.name not in self._first):
                self._first[spec.name] = first_of_stream(stream)
            looks = not self.config.tokens if spec.layers else spec.name not in self._pooled
            if self.config.heads and looks:  # otherwise the token trimmer tells
                self._pooled[spec.name] = look_at(stream).pooled

    def tokens(self, spec: StreamSpec, layer: int, stream: Stream) -> TokenDecision:
        firsts = [self._first[name] for name in spec.others]
        other = None
        if firsts:
            other = firsts[0] if len(firsts) == 1 else torch.stack(firsts).mean(0)
        trimmer = self.trimmers.of_tokens(spec.name, layer)
        survivors, parts, self._pooled[spec.name], logits = trimmer.choose(
            stream, other, spec.modalities == 2, self.config.threshold_logit
        )
        reads = survivors.device.type == "cuda" and can_wait_for(survivors)
        return TokenDecision(None, None, logits, survivors, parts, PendingCount(parts[-1:]) if reads else None)

    def heads(self, spec: StreamSpec, layer: int, block: BlockSpec, stream: Stream) -> HeadDecision | None:
        batch = stream.tokens.batch_size
        seen = dict.fromkeys((spec.name, block.memory))
        pooled = [self._pooled[name].view(batch, -1) for name in seen]
        trimmer = self.trimmers.of_heads(spec.name, layer, block.name)
        keep, logits = trimmer.choose(pooled, self.config.threshold_logit)
        return HeadDecision(keep, None, logits)


class Random(Decider):
    """Chance decides, at given shares."""

    def __init__(self, module: str, config: SmartTrimConfig, samples: bool) -> None:
        self.module, self.shares, self.samples = module, config.random_shares or {}, samples

    def tokens(self, spec: StreamSpec, layer: int, stream: Stream) -> TokenDecision:
        keep = random_tokens(stream, self._share(spec, "tokens", layer), self.samples)
        return TokenDecision(keep | pinned_tokens(stream))

    def heads(self, spec: StreamSpec, layer: int, block: BlockSpec, stream: Stream) -> HeadDecision | None:
        return HeadDecision(random_heads(stream, self._share(spec, block.name, layer), block.heads, self.samples))

    def _share(self, spec: StreamSpec, what: str, layer: int) -> float:
        name = f"{self.module}/{spec.name}"
        if name not in self.shares or what not in self.shares[name]:
            raise ValueError(f"argument 'random_shares': expected {name!r} with {what!r}, got {sorted(self.shares)}")
        return float(self.shares[name][what][layer])


class Repeated(Decider):
    """Another run decided.

    Args:
        run: that run.
        gradients: whose decisions would have been these if logits had been otherwise, None without gradients.
    """

    def __init__(self, run: RunRecord, gradients: Learned | None) -> None:
        self.run, self.gradients = run, gradients

    def look(self, specs: Specs, streams: Streams) -> None:
        if self.gradients is not None:
            self.gradients.look(specs, streams)

    def tokens(self, spec: StreamSpec, layer: int, stream: Stream) -> TokenDecision:
        record = self.run.of(spec.name, layer)
        if record is None:
            raise ValueError(f"argument 'runs': expected layer {layer} of {spec.name!r} among them, got none")
        kept = record.kept() if stream.sizes is None else pad(record.kept(), (0, 1), value=True)
        keep = stream.tokens.gather(kept) | pinned_tokens(stream)
        if self.gradients is None:
            return TokenDecision(keep)
        return self.gradients.tokens(spec, layer, stream)._replace(keep=keep)

    def heads(self, spec: StreamSpec, layer: int, block: BlockSpec, stream: Stream) -> HeadDecision | None:
        record = self.run.of(spec.name, layer)
        kept = None if record is None else record.heads.get(block.name)
        if kept is None:
            return None
        decision = HeadDecision(kept.detach() > 0.5)
        if self.gradients is None:
            return decision
        inner = self.gradients.heads(spec, layer, block, stream)
        return decision if inner is None else inner._replace(keep=decision.keep)


def pinned_tokens(stream: Stream) -> Tensor:
    """bool [total], the first token of each part and what the stream says."""
    first = first_of_parts(stream.parts, stream.values.shape[0])
    return first if stream.pinned is None else first | stream.pinned
