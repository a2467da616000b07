"""Multiply-adds of a forward pass, counted operation by operation, where possible on tensors without data."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vleff.bench.inputs import Batch

# torch has formulas for the attention of GPUs only
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


class FlopCount:
    """Counts the floating point operations of a transformers encoder on any input.

    Counts all matrix products, attention and convolutions; a multiply-add is two operations.

    Args:
        model: the dense model in fp32; its weights are not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.without_data = shallow_meta_copy(model)
        self._counted: dict[tuple[object, ...], int] = {}

    def padded(self, batch: Batch) -> int:
        """Operations for a batch with its padding."""
        return self._count(batch.inputs)

    def ragged(self, batch: Batch) -> int:
        """Operations for the samples of a batch when nothing is spent on padding."""
        return sum(self._count(batch.alone(row)) for row in range(len(batch.samples)))

    def _count(self, inputs: dict[str, Tensor]) -> int:
        patches = inputs["pixel_mask"].sum((1, 2)).max().item() if "pixel_mask" in inputs else None
        key = (patches, *((name, value.shape) for name, value in inputs.items()))
        if key not in self._counted:
            # the attention mask costs no multiply-adds, and building one needs data
            shapes = {name: value.to("meta") for name, value in inputs.items() if name != "attention_mask"}
            try:
                self._counted[key] = _operations(self.without_data, shapes)
            except (RuntimeError, NotImplementedError):  # ViLT and BridgeTower look at masks: a real run
                self._counted[key] = _operations(self.model, inputs)
        return self._counted[key]


def _operations(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


def shallow_meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters and buffers have shapes but no data."""
    without_data: dict[int, object] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = tensor.detach().to("meta")
        without_data[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, without_data).eval()
