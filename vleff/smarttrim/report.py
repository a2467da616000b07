"""What trimming kept, and what it gained: for `explain`, for tables, and measured."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vleff.smarttrim.execution import running, trimmers_of
from vleff.smarttrim.flops import flop_ratio
from vleff.smarttrim.record import LayerRecord, RunRecord
from vleff.smarttrim.trimming import Trimmers

_ROUNDS = 7


@dataclass(frozen=True)
class LayerKept:
    """What one layer of a stream worked on, over all samples.

    Attributes:
        module: the path of the module that holds the layers.
        stream, layer: which.
        initial: the mean number of tokens of a sample before any was dropped.
        tokens: the number of tokens of each sample.
        heads: for each attention block the number of heads of each sample.
        all_heads: for each attention block the number of heads it has.
    """

    module: str
    stream: str
    layer: int
    initial: float
    tokens: list[float]
    heads: dict[str, list[float]] = field(default_factory=dict)
    all_heads: dict[str, int] = field(default_factory=dict)

    @property
    def token_share(self) -> float:
        """The share of the initial tokens."""
        return sum(self.tokens) / max(len(self.tokens) * self.initial, 1e-9)

    def __str__(self) -> str:
        tokens = self.tokens or [0.0]
        text = f"layer {self.layer}: {_spread(tokens)} of {self.initial:.1f} tokens"
        for block, total in self.all_heads.items():
            kept = self.heads.get(block, [float(total)])
            text += f"; {block} attention {_spread(kept)} of {total} heads"
        return text


@dataclass(frozen=True)
class Kept:
    """What trimming kept over some runs.

    Attributes:
        layers: every layer of every stream.
        flop_ratio: the share of the layers' multiply-adds that was done, trimmers' own included.
    """

    layers: list[LayerKept]
    flop_ratio: float

    @property
    def predicted_gain(self) -> float:
        """The speedup of the layers if time went with multiply-adds."""
        return 1 / self.flop_ratio

    def random_shares(self) -> dict[str, dict[str, list[float]]]:
        """For `SmartTrimConfig.random_shares`: the same shares, chosen at random."""
        shares: dict[str, dict[str, list[float]]] = {}
        for one in self.layers:
            stream = shares.setdefault(f"{one.module}/{one.stream}", {})
            stream.setdefault("tokens", []).append(one.token_share)
            for block, total in one.all_heads.items():
                kept = one.heads.get(block, [float(total)])
                stream.setdefault(block, []).append(sum(kept) / len(kept) / total)
        return shares

    def __str__(self) -> str:
        lines, heading = [], None
        for one in self.layers:
            if (one.module, one.stream) != heading:
                heading = one.module, one.stream
                lines.append(f"{one.module or 'model'}, {one.stream}: trimmed before its layers")
            lines.append(f"  {one}")
        lines.append(f"  {self.flop_ratio:.3f} of the multiply-adds: predicted gain of the layers {self._gain()}")
        return "\n".join(lines)

    def _gain(self) -> str:
        return f"{self.predicted_gain:.2f}x"


def kept_by(model: nn.Module, runs: Sequence[RunRecord]) -> Kept:
    """What recorded runs kept, all samples together.

    Args:
        model: attached, whose runs they are.
        runs: of `recorded`, of any number of forwards.

    Raises:
        ValueError: there are no runs.
    """
    return _kept(trimmers_of(model), runs)


def measure_gain(model: nn.Module, inputs: Mapping[str, Any], rounds: int = _ROUNDS) -> float:
    """How many times faster the trimmed model is than the same model at full capacity, on these inputs.

    `vleff.explain` tells it from then on.

    Args:
        model: attached, in evaluation mode.
        inputs: its arguments.
        rounds: both run in turns so many times; medians are compared.
    """
    times: dict[str, list[float]] = {"full": [], "gathered": []}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for mode, found in times.items():
                with running(model, mode):
                    start = time.perf_counter()
                    model(**inputs)
                if number > 0:  # the first round packs weights
                    found.append(time.perf_counter() - start)
    gain = median(times["full"]) / median(times["gathered"])
    trimmers_of(model)[0].execution.measured_gain = gain
    return gain


def explain(trimmers: Trimmers) -> str:
    """What the last run of one module kept."""
    if trimmers.last is None:
        return f"{trimmers.module or 'model'}: trimmers attached; it did not run yet"
    text = str(_kept([trimmers], [trimmers.last]))
    gain = trimmers.execution.measured_gain
    return text if gain is None else f"{text}, measured gain of the model {gain:.2f}x"


def _kept(trimmers: Sequence[Trimmers], runs: Sequence[RunRecord]) -> Kept:
    if not runs:
        raise ValueError("argument 'runs': expected at least one, got none")
    layers: dict[tuple[str, str, int], list[tuple[RunRecord, LayerRecord]]] = {}
    for run in runs:
        for record in run.layers:
            layers.setdefault((run.module, record.stream, record.layer), []).append((run, record))
    with torch.no_grad():
        found = [_layer_kept(key, records) for key, records in layers.items()]
        return Kept(found, float(flop_ratio(list(runs), list(trimmers))))


def _layer_kept(key: tuple[str, str, int], records: list[tuple[RunRecord, LayerRecord]]) -> LayerKept:
    module, stream, layer = key
    tokens: list[float] = []
    initial: list[float] = []
    heads: dict[str, list[float]] = {}
    blocks = records[0][0].spec(stream).layers[layer].blocks
    for run, record in records:
        tokens += record.kept_tokens().tolist()
        initial += run.initial_tokens(stream).tolist()
        for block in blocks:
            kept: Tensor | None = record.heads.get(block.name)
            counts = [float(block.heads)] * run.batch_size if kept is None else kept.float().sum(1).tolist()
            heads.setdefault(block.name, []).extend(counts)
    mean = sum(initial) / max(len(initial), 1)
    return LayerKept(module, stream, layer, mean, tokens, heads, {block.name: block.heads for block in blocks})


def _spread(numbers: list[float]) -> str:
    mean = sum(numbers) / len(numbers)
    low, high = min(numbers), max(numbers)
    return f"{mean:.1f}" if low == high else f"{mean:.1f} ({low:.0f}-{high:.0f})"
