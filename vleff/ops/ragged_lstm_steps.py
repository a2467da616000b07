"""ragged_lstm on CUDA: by torch's own ops, step by step over all samples at once.

Nothing is read back from the device. States are rounded where the CPU's kernel rounds them: hidden states to the dtype
of the gates, all else is float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import vleff._library  # noqa: F401  registers torch.ops.vleff

Result = tuple[Tensor, Tensor, Tensor]


class Steps(NamedTuple):
    """Which row each sample has at each step, in each direction.

    Attributes:
        rows: int64 [steps, directions, batch], numbers in [0, total]; `total` stands for no row.
        present: bool [steps, directions, batch, 1], whether there is a row.
    """

    rows: Tensor
    present: Tensor

    @classmethod
    def of(cls, offsets: Tensor, max_length: int, directions: int, total: int) -> "Steps":
        """The steps of samples that begin at offsets [batch + 1]."""
        starts, lengths = offsets[:-1].long(), offsets.diff().long()
        step = torch.arange(max_length, device=offsets.device)[:, None]
        forward = starts + step
        both = torch.stack([forward, starts + lengths - 1 - step][:directions], 1)
        present = (step < lengths)[:, None].expand_as(both)
        return cls(both.masked_fill(~present, total), present[..., None])

    def take(self, values: Tensor) -> Tensor:
        """values [total, directions * n] -> float32 [steps, directions, batch, n], zeros where there is no row"""
        directions = self.rows.shape[1]
        padded = torch.nn.functional.pad(values.float(), (0, 0, 0, 1)).unflatten(1, (directions, -1))
        return torch.stack([padded[self.rows[:, d], d] for d in range(directions)], 1)

    def put(self, steps: Tensor, total: int, dtype: torch.dtype) -> Tensor:
        """The opposite of `take`: [total, directions * n], zeros for rows of no sample."""
        directions, columns = steps.shape[1], steps.shape[-1]
        values = torch.zeros(total + 1, directions, columns, dtype=dtype, device=steps.device)
        for direction in range(directions):
            rows, of_direction = self.rows[:, direction].flatten(), steps[:, direction].flatten(0, 1)
            values[:, direction].index_copy_(0, rows, of_direction.to(dtype))
        return values[:total].flatten(1)


def _states(initial: Tensor | None, like: Tensor, batch: int, directions: int, width: int) -> Tensor:
    """float32 [directions, batch, width]"""
    if initial is None:
        return like.new_zeros(directions, batch, width, dtype=torch.float32)
    return initial.float().unflatten(1, (directions, width)).transpose(0, 1)


def ragged_lstm_by_steps(
    gates: Tensor,
    weight: Tensor,
    offsets: Tensor,
    max_length: int,
    initial_hidden: Tensor | None = None,
    initial_cell: Tensor | None = None,
    *,
    activations: bool = False,
) -> Result:
    """As torch.ops.vleff.ragged_lstm."""
    total, batch, (directions, _, width) = gates.shape[0], offsets.shape[0] - 1, weight.shape
    steps = Steps.of(offsets, max_length, directions, total)
    added, transposed = steps.take(gates), weight.float().transpose(1, 2)
    hidden = _states(initial_hidden, gates, batch, directions, width)
    cell = _states(initial_cell, gates, batch, directions, width)
    made: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(max_length):
        i, f, g, o = (added[step] + hidden @ transposed).split(width, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new_cell = f * cell + i * g
        new_hidden = (o * new_cell.tanh()).to(gates.dtype).float()
        cell = torch.where(steps.present[step], new_cell, cell)
        hidden = torch.where(steps.present[step], new_hidden, hidden)
        made.append((hidden, cell, torch.cat([i, f, g, o], -1) if activations else hidden[..., :0]))
    columns = directions * width
    if not made:
        nothing = gates.new_zeros(total, columns)
        return nothing, nothing.float(), gates.new_zeros(total if activations else 0, 4 * columns)
    all_hidden, all_cells, activated = (torch.stack(parts) for parts in zip(*made, strict=True))
    return (
        steps.put(all_hidden, total, gates.dtype),
        steps.put(all_cells, total, torch.float32),
        steps.put(activated, total, gates.dtype) if activations else gates.new_empty(0, 4 * columns),
    )


def ragged_lstm_backward_by_steps(
    grad_hidden: Tensor,
    cell: Tensor,
    activated: Tensor,
    gates: Tensor,
    weight: Tensor,
    offsets: Tensor,
    max_length: int,
    initial_hidden: Tensor | None = None,
    initial_cell: Tensor | None = None,
) -> Result:
    """As torch.ops.vleff.ragged_lstm_backward."""
    total, batch, (directions, _, width) = gates.shape[0], offsets.shape[0] - 1, weight.shape
    steps = Steps.of(offsets, max_length, directions, total)
    outside, cells, of_gates = (steps.take(values) for values in (grad_hidden, cell, activated))
    first_cell = _states(initial_cell, gates, batch, directions, width)
    of_hidden = torch.zeros_like(first_cell)
    of_cell = torch.zeros_like(first_cell)
    made: list[Tensor] = []
    for step in reversed(range(max_length)):
        i, f, g, o = of_gates[step].split(width, -1)
        state = cells[step].tanh()
        grad = outside[step] + of_hidden
        through = of_cell + grad * o * (1 - state * state)
        before = cells[step - 1] if step > 0 else first_cell
        parts = (through * g * i * (1 - i), through * before * f * (1 - f), through * i * (1 - g * g))
        grads = torch.cat([*parts, grad * state * o * (1 - o)], -1).to(gates.dtype).float()
        made.append(grads)
        of_hidden = torch.where(steps.present[step], grads @ weight.float(), of_hidden)
        of_cell = torch.where(steps.present[step], through * f, of_cell)
    grad_gates = steps.put(torch.stack(made[::-1]), total, gates.dtype) if made else torch.zeros_like(gates)

    def by_sample(states: Tensor) -> Tensor:
        return states.transpose(0, 1).flatten(1)

    return grad_gates, by_sample(of_hidden).to(gates.dtype), by_sample(of_cell).contiguous()


def _register(name: str, function: Any) -> None:
    torch.library.impl(f"vleff::{name}", "cuda", function)


_register("ragged_lstm", ragged_lstm_by_steps)
_register("ragged_lstm_backward", ragged_lstm_backward_by_steps)
