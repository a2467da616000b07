"""Shares and multiply-adds of a run on a GPU, with fake CUDA tensors: all stays on the device."""

from dataclasses import replace

import torch
from fake_cuda import fake_cuda
from methods.smarttrim.families import trimmed
from transformers import ViltForQuestionAnswering

from vleff import smarttrim
from vleff.nn.ragged import RaggedBatch
from vleff.smarttrim.execution import trimmers_of
from vleff.smarttrim.flops import flop_ratio
from vleff.smarttrim.record import RunRecord, head_share, token_share


def test_shares_and_the_flop_ratio_stay_on_the_device() -> None:
    family = trimmed(ViltForQuestionAnswering)
    with smarttrim.recorded(family.model) as runs:
        family.outputs()
    with fake_cuda(allow_non_fake_inputs=True):
        there = [_moved(run) for run in runs]
        for number in (token_share(there), head_share(there), flop_ratio(there, trimmers_of(family.model))):
            assert (number.device.type, number.shape) == ("cuda", ())


def _moved(run: RunRecord) -> RunRecord:
    """The same run on a GPU; the first layer keeps all heads, and its share is no tensor of the run's."""

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    layers = []
    for number, record in enumerate(run.layers):
        tokens = RaggedBatch(there(record.tokens.values), there(record.tokens.offsets), record.tokens.max_length)
        heads = {name: there(kept) for name, kept in record.heads.items() if number > 0}
        gates = None if record.gates is None else there(record.gates)
        layers.append(replace(record, tokens=tokens, parts=there(record.parts), gates=gates, heads=heads))
    initial = {name: there(tokens) for name, tokens in run.initial.items()}
    return replace(run, initial=initial, layers=layers)
