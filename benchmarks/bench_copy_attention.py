"""CopyAttention against the plain formula: 32 pairs of question and paragraph, 30,000 words, width 300.

The plain formula is that of pointer-generator networks as it is commonly written: the batch is padded, the
probabilities of all words are made, attention is added to them by a scatter, and the target's is picked. The second
baseline of training pads no targets and picks early: the target's of the logits' log_softmax, and of attention the
positions that hold the target.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

import vleff
from vleff.nn import CopyAttention
from vleff.ops import copy_attention_rows

SAMPLES, BEAMS, WIDTH = 32, 5, 300
WORDS, EXTENDED = 30_000, 30_060
SPEED_TARGET = 3.0


class Case:
    """Questions of 6 to 20 words, paragraphs of 60 to 240, and what a decoder made of them.

    Args:
        beams: rows of each sample; if None as many as the target question has words, of which every second one is
            in the paragraph.
    """

    def __init__(self, dtype: torch.dtype, beams: int | None = None) -> None:
        torch.manual_seed(0)

        def lengths(low: int, high: int) -> list[int]:
            return torch.randint(low, high + 1, (SAMPLES,)).tolist()

        def ragged(of_samples: list[int]) -> vleff.RaggedBatch:
            values = torch.randn(sum(of_samples), WIDTH).to(dtype)
            return vleff.RaggedBatch(values, torch.tensor([0, *of_samples]).cumsum(0).int(), max(of_samples))

        self.module = CopyAttention(WIDTH, WORDS).to(dtype)
        self.lengths = lengths(6, 20) if beams is None else [beams] * SAMPLES
        self.source_lengths = lengths(6, 20), lengths(60, 240)
        self.decoded = ragged(self.lengths)
        self.sources = [ragged(of_samples) for of_samples in self.source_lengths]
        self.ids = [torch.randint(EXTENDED, (sum(n),), dtype=torch.int32) for n in self.source_lengths]
        self.targets = torch.randint(WORDS, (sum(self.lengths),))
        of_samples = self.targets.split(self.lengths)
        for targets, words in zip(of_samples, self.ids[1].split(self.source_lengths[1]), strict=True):
            targets[::2] = words[: len(targets[::2])]
        self.leaves = [
            x.requires_grad_()
            for x in (*(batch.values for batch in (self.decoded, *self.sources)), *self.module.parameters())
        ]
        self.memories = self.module.memories(self.sources[0], self.ids[0], self.sources[1], self.ids[1])
        # the plain formula's inputs
        self.sample_of_row = torch.arange(SAMPLES).repeat_interleave(torch.tensor(self.lengths))
        self.padded_ids = [
            pad_sequence(ids.long().split(n), batch_first=True)
            for ids, n in zip(self.ids, self.source_lengths, strict=True)
        ]
        self.masks = [torch.arange(max(n)) < torch.tensor(n)[:, None] for n in self.source_lengths]
        self.row_mask = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
        self.padded_targets = pad_sequence(of_samples, batch_first=True)

    def step(self, log_probs: Tensor) -> list[Tensor]:
        """The loss and its gradients in all inputs and parameters."""
        loss = -log_probs.mean()
        return [loss.detach(), *torch.autograd.grad(loss, self.leaves)]

    def ours(self) -> list[Tensor]:
        memories = self.module.memories(self.sources[0], self.ids[0], self.sources[1], self.ids[1])
        return self.step(self.module(self.decoded, memories, self.targets)[0])

    def padded(self) -> list[Tensor]:
        decoded = pad_sequence(self.decoded.values.split(self.lengths), batch_first=True)
        probabilities = self.mixture(*self.projections(decoded), self.keys())
        return self.step(probabilities.gather(2, self.padded_targets[..., None]).squeeze(2)[self.row_mask].log())

    def picked_early(self) -> list[Tensor]:
        queries, gate_logits, logits = self.projections(self.decoded.values)
        gate = gate_logits.softmax(1)
        generated = logits.log_softmax(1).gather(1, self.targets[:, None]).squeeze(1).exp()
        chosen = [gate[:, 0] * generated]
        queries = pad_sequence(queries.split(self.lengths), batch_first=True)
        for number, weights in enumerate(self.attention(queries, self.keys())):
            holds = self.padded_ids[number][self.sample_of_row] == self.targets[:, None]
            chosen.append(gate[:, number + 1] * (weights[self.row_mask] * holds).sum(1))
        return self.step(torch.stack(chosen).sum(0).log())

    def projections(self, decoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and the logits of the gate and of the decoder's words."""
        return self.module.query(decoded), self.module.gate(decoded), self.module.vocabulary(decoded)

    def keys(self) -> list[Tensor]:
        """[samples, positions, width] of both memories."""
        projections = self.module.question_key, self.module.paragraph_key
        return [
            pad_sequence(projection(source.values).split(n), batch_first=True)
            for projection, source, n in zip(projections, self.sources, self.source_lengths, strict=True)
        ]

    def attention(self, queries: Tensor, keys: list[Tensor]) -> list[Tensor]:
        """[samples, rows, positions] to both memories."""
        products = [queries * WIDTH**-0.5 @ key.transpose(1, 2) for key in keys]
        masks = [mask[:, None] for mask in self.masks]
        return [x.masked_fill(~mask, -torch.inf).softmax(2) for x, mask in zip(products, masks, strict=True)]

    def mixture(self, queries: Tensor, gate_logits: Tensor, logits: Tensor, keys: list[Tensor]) -> Tensor:
        """Probabilities [samples, rows, extended words]."""
        gate = gate_logits.softmax(2)
        words = pad(gate[..., :1] * logits.softmax(2), (0, EXTENDED - WORDS))
        for number, weights in enumerate(self.attention(queries, keys)):
            ids = self.padded_ids[number][:, None].expand(weights.shape)
            words = words.scatter_add(2, ids, gate[..., number + 1, None] * weights)
        return words

    def exact(self, beams: int | None = None) -> "Case":
        """The same numbers in float64."""
        exact = Case(torch.float64, beams)
        for target, source in zip(exact.leaves, self.leaves, strict=True):
            target.data.copy_(source.data)
        return exact


@pytest.mark.benchmark(group="CopyAttention, forward and backward: 32 questions, 30,000 words, width 300")
def test_training(interleaved: Callable[..., None], dtype: torch.dtype, device: torch.device) -> None:
    with device:
        case = Case(dtype)
        expected = case.exact().padded()
    for ours, plain, exact in zip(case.ours(), case.picked_early(), expected, strict=True):
        error, plain_error = ((x.double() - exact).abs().max() for x in (ours, plain))
        allowed = 2 * plain_error + torch.finfo(torch.float32).eps * exact.abs().max()
        assert error <= allowed, f"outputs differ: error {error:.1e} against fp64, the formula has {plain_error:.1e}"
    baselines = {"plain formula": case.padded, "plain formula, picked early": case.picked_early}
    interleaved(case.ours, baselines, {"plain formula": SPEED_TARGET}, budget=30)


@pytest.mark.benchmark(group="A step of beam search: 32 x 5 beams, 30,000 words, width 300")
@pytest.mark.parametrize("part", ["CopyAttention", "copy_attention_rows"])
def test_beams(interleaved: Callable[..., None], part: str, dtype: torch.dtype, device: torch.device) -> None:
    """The layer, whose product with 30,000 words is the larger part, and the op, which starts from the logits."""
    with device:
        case = Case(dtype, BEAMS)
        exact = case.exact(BEAMS)
    decoded, memories = case.decoded, case.memories
    with torch.inference_mode():
        keys, given = case.keys(), case.projections(decoded.values)
        given_by_sample = [by_sample(x) for x in given]
        expected = exact.mixture(*exact.projections(by_sample(exact.decoded.values)), exact.keys())

    def ours() -> Tensor:
        with torch.inference_mode():
            if part == "CopyAttention":
                return case.module.rows(decoded, memories, EXTENDED)
            queries, gate_logits, logits = given
            return copy_attention_rows(queries, decoded.offsets, BEAMS, *memories, gate_logits, logits, EXTENDED)

    def plain() -> Tensor:
        with torch.inference_mode():
            made = case.projections(by_sample(decoded.values)) if part == "CopyAttention" else given_by_sample
            return case.mixture(*made, keys).log()

    error, plain_error = ((by_sample(x).double().exp() - expected).abs().max() for x in (ours(), plain().flatten(0, 1)))
    assert error <= 2 * plain_error, f"outputs differ: error {error:.1e} against fp64, torch has {plain_error:.1e}"
    targets = {"plain formula": SPEED_TARGET if part == "copy_attention_rows" else None}
    interleaved(ours, {"plain formula": plain}, targets, budget=20)


def by_sample(rows: Tensor) -> Tensor:
    """[samples * beams, ...] -> [samples, beams, ...]"""
    return rows.unflatten(0, (SAMPLES, BEAMS))
