"""Multiply-adds of a forward pass, counted operation by operation on tensors without data."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class FlopCount:
    """Counts the floating point operations of a transformers encoder at any batch size and length.

    Counts all matrix products, attention and convolutions; a multiply-add is two operations.

    Args:
        model: the dense model; its weights are not copied.
        example: inputs of the model, [batch, ...] each. Only shapes and dtypes matter.
    """

    def __init__(self, model: nn.Module, example: dict[str, Tensor]) -> None:
        self.model = shallow_meta_copy(model)
        # the attention mask costs no multiply-adds, and building one needs data
        self.example = {name: value for name, value in example.items() if name != "attention_mask"}
        self.counted: dict[tuple[int, int], int] = {}

    def padded(self, batch: int, length: int) -> int:
        """Operations for `batch` samples of `length` tokens each."""
        if (batch, length) not in self.counted:
            inputs = {name: _resized(name, value, batch, length) for name, value in self.example.items()}
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self.model(**inputs)
            self.counted[batch, length] = counter.get_total_flops()
        return self.counted[batch, length]

    def ragged(self, lengths: Iterable[int]) -> int:
        """Operations for samples of these lengths when nothing is spent on padding."""
        return sum(self.padded(1, length) for length in lengths)


def shallow_meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters and buffers have shapes but no data."""
    with torch.device("meta"):
        copy = type(model)(model.config)
    return copy.eval()


def _resized(name: str, value: Tensor, batch: int, length: int) -> Tensor:
    shape = (batch, length) if name == "input_ids" else (batch, *value.shape[1:])
    return torch.empty(shape, dtype=value.dtype, device="meta")
