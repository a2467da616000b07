"""Inputs of copy_attention, and gradients, shared by its tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attention_cases import Inputs, offsets_of
from torch import Tensor

from vleff.ops import CopyMemory, copy_attention_reference

WORDS, EXTENDED = 20, 26
LEAVES = ("queries", "question", "paragraph", "gate_logits", "generate_log_probs")

# Names and arguments of `make_inputs`: lengths of targets, question and paragraph of each sample.
SHAPES: dict[str, dict[str, Any]] = {
    "one of each": {"lengths": [(1, 1, 1)]},
    "width 1": {"lengths": [(3, 2, 5), (2, 4, 1)], "width": 1},
    "width 17": {"lengths": [(5, 8, 30), (9, 17, 16)], "width": 17},
    "width 300": {"lengths": [(12, 11, 140), (7, 13, 90)], "width": 300},
    "many targets": {"lengths": [(70, 5, 33)], "width": 40},
    "empty samples": {"lengths": [(0, 3, 4), (3, 0, 9), (4, 5, 0), (2, 0, 0), (0, 0, 0)]},
}
NOTHING: dict[str, dict[str, Any]] = {
    "no samples": {"lengths": []},
    "only empty samples": {"lengths": [(0, 0, 0)] * 2},
    "no targets": {"lengths": [(0, 3, 4)]},
    "no memories": {"lengths": [(3, 0, 0), (2, 0, 0)]},
}


def make_inputs(
    lengths: Sequence[tuple[int, int, int]],
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Inputs:
    """Random rows; a quarter of the targets are words that the decoder lacks."""
    query_lengths, *memory_lengths = ([sample[i] for sample in lengths] for i in range(3))
    rows = sum(query_lengths)
    memories = [
        CopyMemory(
            (2 * torch.randn(sum(memory), width)).to(dtype),
            torch.randint(EXTENDED, (sum(memory),), dtype=torch.int32),
            offsets_of(memory),
            max(memory, default=0),
        )
        for memory in memory_lengths
    ]
    targets = torch.randint(EXTENDED, (rows,))
    return {
        "queries": torch.randn(rows, width).to(dtype),
        "query_offsets": offsets_of(query_lengths),
        "max_queries": max(query_lengths, default=0),
        "question": memories[0],
        "paragraph": memories[1],
        "gate_logits": torch.randn(rows, 3).to(dtype),
        "generate_log_probs": (-4 * torch.rand(rows)).masked_fill(targets >= WORDS, -torch.inf),
        "targets": targets,
        **options,
    }


def inputs_far_below() -> Inputs:
    """Targets that are only at positions hundreds of nats below the best one, or hardly ever generated."""
    inputs = make_inputs([(3, 2, 20)], scale=1.0)
    inputs["queries"] = torch.ones(3, 16)
    keys = torch.zeros(20, 16)
    keys[1:] -= 30  # logits -480
    ids = torch.tensor([1] + [7] * 19, dtype=torch.int32)
    inputs["paragraph"] = CopyMemory(keys, ids, inputs["paragraph"].offsets, 20)
    inputs["question"] = inputs["question"]._replace(ids=torch.tensor([2, 3], dtype=torch.int32))
    inputs["targets"] = torch.tensor([7, 7, 9])
    inputs["generate_log_probs"] = torch.tensor([-torch.inf, -600.0, -800.0])
    return inputs


def map_floats(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with the function of every floating-point tensor."""
    result = dict(inputs)
    for name in LEAVES:
        value = inputs[name]
        changed = function(value.keys if isinstance(value, CopyMemory) else value)
        result[name] = value._replace(keys=changed) if isinstance(value, CopyMemory) else changed
    return result


def in_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same numbers in another dtype."""
    return map_floats(inputs, lambda x: x.to(dtype))


def exact(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The reference's results in float64."""
    return copy_attention_reference(**in_dtype(inputs, torch.float64))


def gradients(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs, grad: Tensor, coverage_grad: Tensor | None = None
) -> dict[str, Tensor]:
    """Gradients of <log_probs, grad> + <coverage_loss, coverage_grad> in all leaves, without impossible targets."""
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    log_probs, coverage_loss = function(**map_floats(inputs, leaf))
    loss = (log_probs.masked_fill(log_probs == -torch.inf, 0) * grad.to(log_probs.dtype)).sum()
    if coverage_grad is not None:
        loss = loss + (coverage_loss * coverage_grad.to(coverage_loss.dtype)).sum()
    found = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return dict(zip(LEAVES, found, strict=True))


def exact_gradients(inputs: Inputs, grad: Tensor, coverage_grad: Tensor | None = None) -> dict[str, Tensor]:
    return gradients(copy_attention_reference, in_dtype(inputs, torch.float64), grad, coverage_grad)
