"""Decisions for trimmed models whose trimmers are not trained: how many tokens and heads each sample keeps is given.

The shares are those that the demo's trimmers keep of held-out questions of Tile VQA (`vleff demo`). A sample follows
one question from layer to layer; where a model has more layers, the shares between two of the demo's lie on a line.
Tokens' shares are raised to the power that makes the batch's FLOP ratio the wanted one. Which tokens and heads they are
is chance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from vleff import smarttrim
from vleff.demo import recorded_figures
from vleff.models.trimming import BlockSpec, Stream, StreamSpec
from vleff.ops.trim_tokens import first_of_parts, part_rows
from vleff.smarttrim.deciders import Decider, HeadDecision, Specs, Streams, TokenDecision
from vleff.smarttrim.trimming import Run, Trimmers


@dataclass(frozen=True)
class Shares:
    """What each sample keeps.

    Attributes:
        tokens: [batch, depths], shares of its tokens at each depth, falling.
        heads: [batch], of the heads in each trimmed layer.
    """

    tokens: Tensor
    heads: Tensor


def everything_kept(model: nn.Module, inputs: Mapping[str, Any]) -> list[smarttrim.RunRecord]:
    """The runs of one forward of a model whose new trimmers drop nothing."""
    with smarttrim.recorded(model) as runs, torch.inference_mode():
        model(**inputs)
    assert all(int(record.parts[-1]) == int(run.initial[record.stream].sum()) for run in runs for record in run.layers)
    return runs


def depths(runs: Sequence[smarttrim.RunRecord]) -> int:
    """How many layers a token passes in all of these runs."""
    return max(_passed(runs, run, record.stream) + record.layer for run in runs for record in run.layers) + 1


def measured_shares(model: nn.Module, runs: list[smarttrim.RunRecord], flop_ratio: float) -> Shares:
    """Shares with the spread that trained trimmers have over samples, at a FLOP ratio of layers and trimmers."""
    questions, count = _of_the_demo(), depths(runs)
    # by number: a batch begins with the samples of a smaller one
    numbers = torch.arange(runs[0].batch_size) % len(questions.heads)
    tokens = interpolate(questions.tokens[numbers, None], count, mode="linear", align_corners=True)[:, 0]
    low, high = 0.0, 64.0
    for _ in range(20):
        power = (low + high) / 2
        found = Shares(tokens**power, questions.heads[numbers])
        decide(runs, found)
        low, high = (power, high) if smarttrim.kept_by(model, runs).flop_ratio > flop_ratio else (low, power)
    return found


def decide(runs: Sequence[smarttrim.RunRecord], shares: Shares) -> None:
    """Changes records of runs that kept everything: now they keep these shares, each stream its own random tokens."""
    for run in runs:
        for record in run.layers:
            parts, total = record.parts, record.tokens.values.shape[0]
            order = torch.rand(total, generator=torch.Generator().manual_seed(total))  # the same in every layer
            rows = part_rows(parts, total)
            order = (rows + order.masked_fill(first_of_parts(parts, total), 0)).argsort()
            ranks = torch.empty_like(order).index_copy_(0, order, torch.arange(total)) - parts.long()[rows]
            passed = _passed(runs, run, record.stream)
            depth = passed + record.layer if record.layer else max(passed - 1, 0)  # a run's first layer trims nothing
            share = shares.tokens[:, depth].repeat_interleave(parts.diff().numel() // run.batch_size)
            record.gates = (ranks < (share * parts.diff()).round().clamp(min=1)[rows]).float()
            for block in run.spec(record.stream).layers[record.layer].blocks if record.layer else ():
                kept = (shares.heads * block.heads).round().clamp(min=1)
                draws = torch.rand(run.batch_size, block.heads, generator=torch.Generator().manual_seed(record.layer))
                record.heads[block.name] = draws.argsort(1).argsort(1) < kept[:, None]


def overrule(model: nn.Module, runs: Sequence[smarttrim.RunRecord]) -> None:
    """From now on, inference asks the trimmers, as always, but does what these runs did."""
    for trimmers in smarttrim.trimmers_of(model):
        trimmers.__class__ = _OverruledTrimmers
        found: Any = trimmers
        found.planned = _planned(next(run for run in runs if run.module == trimmers.module))


def follow(
    model: nn.Module, runs: Sequence[smarttrim.RunRecord], shares: Shares, outputs: Callable[[], Sequence[Tensor]]
) -> float:
    """From now on the model keeps these shares of the batch whose runs kept everything.

    Args:
        outputs: what the model makes of that batch.

    Returns:
        the FLOP ratio of layers and trimmers.

    Raises:
        ValueError: the outputs differ from those of the same model that computes all tokens and hides them.
    """
    decide(runs, shares)
    with smarttrim.repeated(model, runs), smarttrim.running(model, "masked"):
        expected = outputs()
    overrule(model, runs)
    with smarttrim.recorded(model) as made:
        actual = outputs()
    tolerance = 1e-5 if expected[0].dtype == torch.float32 else 0.05
    for ours, wanted in zip(actual, expected, strict=True):
        there = (ours != 0).any(-1)
        difference = float((ours - wanted)[there].abs().max() / wanted.abs().max())
        if not difference <= tolerance:
            raise ValueError(f"outputs differ: gathered from masked by {difference:.1e}")
    return smarttrim.kept_by(model, made).flop_ratio


Key = tuple[str, int]  # stream and layer


@dataclass(frozen=True)
class _Plan:
    """The decisions of a run, ready to be handed out: trimmers' kernels hand theirs out for nothing, too."""

    tokens: dict[Key, TokenDecision]
    heads: dict[Key, dict[str, HeadDecision]]


class _OverruledTrimmers(Trimmers):
    planned: _Plan

    def begin(self, *streams: Stream | None) -> Run:
        run = super().begin(*streams)
        run.decider = _Overruled(run.decider, self.planned)
        return run


class _Overruled(Decider):
    """Asks another decider, and does what a plan says."""

    def __init__(self, asked: Decider, plan: _Plan) -> None:
        self.asked, self.plan = asked, plan

    def look(self, specs: Specs, streams: Streams) -> None:
        self.asked.look(specs, streams)

    def tokens(self, spec: StreamSpec, layer: int, stream: Stream) -> TokenDecision:
        self.asked.tokens(spec, layer, stream)
        return self.plan.tokens[spec.name, layer]

    def heads(self, spec: StreamSpec, layer: int, block: BlockSpec, stream: Stream) -> HeadDecision | None:
        self.asked.heads(spec, layer, block, stream)
        return self.plan.heads[spec.name, layer][block.name]


def _planned(run: smarttrim.RunRecord) -> _Plan:
    trimmed = [record for record in run.layers if record.layer > 0]
    return _Plan(
        {(record.stream, record.layer): _token_decision(run, record.stream, record.layer) for record in trimmed},
        {
            (record.stream, record.layer): {name: HeadDecision(kept) for name, kept in record.heads.items()}
            for record in trimmed
        },
    )


def _token_decision(plan: smarttrim.RunRecord, stream: str, layer: int) -> TokenDecision:
    before, record = plan.of(stream, layer - 1), plan.of(stream, layer)
    assert before is not None and before.gates is not None and record is not None and record.gates is not None
    there, keep = before.gates > 0, record.gates > 0
    kept_parts = pad(keep.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, record.parts)
    return TokenDecision(None, None, None, keep[there].nonzero().squeeze(1).int(), kept_parts)


def _passed(runs: Sequence[smarttrim.RunRecord], run: smarttrim.RunRecord, stream: str) -> int:
    """How many layers the tokens of a stream passed before a run: those of their tower, if it joins several."""
    if sum(bool(spec.layers) for spec in run.specs) == 1:
        return 0
    initial = run.initial[stream]
    towers = [one for one in runs if one is not run and torch.equal(next(iter(one.initial.values())), initial)]
    return max(record.layer for one in towers for record in one.layers) + 1


@cache
def _of_the_demo() -> Shares:
    """What the demo's model keeps of each question."""
    kept = recorded_figures()["kept"]
    return Shares(torch.tensor(kept["tokens"]), torch.tensor(kept["heads"]))
