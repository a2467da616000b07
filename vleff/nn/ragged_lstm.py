"""RaggedLSTM: nn.LSTM over ragged batches."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vleff.nn.fused_linear import FusedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.ops.ragged_lstm import ragged_lstm


class RaggedLSTM(nn.Module):
    """One layer of nn.LSTM, in one direction or in both, over the samples of a ragged batch.

    Attributes:
        input: `FusedLinear` from inputs to the gates i, f, g, o of all directions, with the sum of both biases.
        recurrent: [directions, 4 * hidden_size, hidden_size].

    Args:
        input_size: width of the inputs.
        hidden_size: width of the hidden states of one direction.
        bidirectional: whether a second direction runs from a sample's end.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.hidden_size = hidden_size
        gates = 4 * hidden_size
        self.input = FusedLinear(input_size, self.directions * gates, device=device, dtype=dtype)
        self.recurrent = nn.Parameter(torch.empty(self.directions, gates, hidden_size, device=device, dtype=dtype))
        bound = 1 / math.sqrt(hidden_size)
        for parameter in (self.input.weight, self.input.bias, self.recurrent):
            nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM) -> "RaggedLSTM":
        """The same function with copies of the weights.

        Raises:
            ValueError: `lstm` has several layers, a projection or no biases.
        """
        if lstm.num_layers != 1 or lstm.proj_size or not lstm.bias:
            raise ValueError(f"argument 'lstm': expected one layer with biases and no projection, got {lstm}")
        weight: Any = lstm.weight_ih_l0
        made = cls(lstm.input_size, lstm.hidden_size, lstm.bidirectional, weight.device, weight.dtype)
        ends = ["l0", "l0_reverse"][: made.directions]

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(lstm, f"{name}_{end}") for end in ends])

        with torch.no_grad():
            made.input.weight.copy_(joined("weight_ih"))
            made.input.bias.copy_(joined("bias_ih") + joined("bias_hh"))
            made.recurrent.copy_(joined("weight_hh").unflatten(0, (made.directions, -1)))
        return made.train(lstm.training)

    def forward(
        self, batch: RaggedBatch, initial_hidden: Tensor | None = None, initial_cell: Tensor | None = None
    ) -> tuple[RaggedBatch, Tensor]:
        """Reads every sample from its first row, or in the second direction from its last.

        Args:
            batch: values [total, input_size].
            initial_hidden: [batch, directions * hidden_size]; zeros if None.
            initial_cell: float32 [batch, directions * hidden_size]; zeros if None.

        Returns:
            a batch of hidden states [total, directions * hidden_size], and
            cell states float32 [total, directions * hidden_size], without gradient.

        Raises:
            RuntimeError: as `vleff.ops.ragged_lstm`.
        """
        hidden, cell = ragged_lstm(
            self.input(batch.values), self.recurrent, batch.offsets, batch.max_length, initial_hidden, initial_cell
        )
        return batch.replace(hidden), cell

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, bidirectional={self.directions == 2}"
