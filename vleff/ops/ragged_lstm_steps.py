"""ragged_lstm on CUDA: by torch's own ops, step by step over all samples at once.

Nothing is read back from the device. States are rounded where the CPU's kernel rounds them: hidden states to the dtype
of the gates, all else is float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vleff.ops.by_torch import FLOATS, check_tensor, reject, runs_on_cuda

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
        """The steps of samples that begin at offsets [batch + 1]; wrong offsets give wrong rows, but none elsewhere."""
        offsets = offsets.long().clamp(0, total)
        starts, lengths = offsets[:-1], offsets.diff()
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


def _check(
    op: str,
    gates: Tensor,
    weight: Tensor,
    offsets: Tensor,
    max_length: int,
    initial_hidden: Tensor | None,
    initial_cell: Tensor | None,
) -> None:
    """Of what both passes are given, all but the values of offsets."""
    device, dtype = gates.device, gates.dtype
    check_tensor(op, "gates", gates, FLOATS, ("total", "directions * 4 * width"), device)
    check_tensor(op, "weight", weight, [dtype], ("directions", "4 * width", "width"), device)
    directions, rows, width = weight.shape
    if directions not in (1, 2) or width < 1 or rows != 4 * width:
        expected = "[directions, 4 * width, width] with 1 or 2 directions and width at least 1"
        reject(op, "weight", expected, list(weight.shape))
    check_tensor(op, "gates", gates, FLOATS, ("total", directions * 4 * width), device)
    check_tensor(op, "offsets", offsets, [torch.int32], ("batch + 1",), device)
    if len(offsets) == 0:
        reject(op, "offsets", "at least one offset", "none")
    if max_length < 0:
        reject(op, "max_length", "at least 0", max_length)
    states = len(offsets) - 1, directions * width
    check_tensor(op, "initial_hidden", initial_hidden, [dtype], states, device)
    check_tensor(op, "initial_cell", initial_cell, [torch.float32], states, device)


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
    """As torch.ops.vleff.ragged_lstm.

    Returns:
        hidden: [total, directions * width], the dtype of `gates`.
        cell: float32 [total, directions * width].
        activated: [total, directions * 4 * width], the dtype of `gates`: sigmoids and tanh of the gates; no rows
            unless asked for. Rows of no sample are 0 in all three.
    """
    _check("ragged_lstm", gates, weight, offsets, max_length, initial_hidden, initial_cell)
    total, batch, (directions, _, width) = gates.shape[0], offsets.shape[0] - 1, weight.shape
    steps = Steps.of(offsets, max_length, directions, total)
    added, transposed = steps.take(gates), weight.float().transpose(1, 2)
    hidden = _states(initial_hidden, gates, batch, directions, width)
    cell = _states(initial_cell, gates, batch, directions, width)
    made: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(max_length):
        # what goes on behind a sample's end is kept from its rows by `put`, and reaches no other sample
        i, f, g, o = torch.baddbmm(added[step], hidden, transposed).split(width, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        cell = f * cell + i * g
        hidden = (o * cell.tanh()).to(gates.dtype).float()
        made.append((hidden, cell, torch.cat([i, f, g, o], -1) if activations else hidden[..., :0]))
    columns = directions * width
    if not made:
        return (
            gates.new_zeros(total, columns),
            gates.new_zeros(total, columns, dtype=torch.float32),
            gates.new_zeros(total if activations else 0, 4 * columns),
        )
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
    """As torch.ops.vleff.ragged_lstm_backward.

    Returns:
        grad_gates: [total, directions * 4 * width], the dtype of `gates`; rows of no sample are 0.
        grad_initial_hidden: [batch, directions * width], the dtype of `gates`.
        grad_initial_cell: float32 [batch, directions * width].
    """
    op = "ragged_lstm_backward"
    _check(op, gates, weight, offsets, max_length, initial_hidden, initial_cell)
    rows, columns = gates.shape[0], gates.shape[1] // 4
    check_tensor(op, "grad_hidden", grad_hidden, [gates.dtype], (rows, columns), gates.device)
    check_tensor(op, "cell", cell, [torch.float32], (rows, columns), gates.device)
    check_tensor(op, "activated", activated, [gates.dtype], (rows, 4 * columns), gates.device)
    total, batch, (directions, _, width) = gates.shape[0], offsets.shape[0] - 1, weight.shape
    steps = Steps.of(offsets, max_length, directions, total)
    outside, cells, of_gates = (steps.take(values) for values in (grad_hidden, cell, activated))
    widened = weight.float()
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
        of_hidden = torch.where(steps.present[step], grads @ widened, of_hidden)
        of_cell = torch.where(steps.present[step], through * f, of_cell)
    grad_gates = steps.put(torch.stack(made[::-1]), total, gates.dtype) if made else torch.zeros_like(gates)

    def by_sample(states: Tensor) -> Tensor:
        return states.transpose(0, 1).flatten(1)

    return grad_gates, by_sample(of_hidden).to(gates.dtype), by_sample(of_cell).contiguous()


runs_on_cuda("ragged_lstm", ragged_lstm_by_steps)
runs_on_cuda("ragged_lstm_backward", ragged_lstm_backward_by_steps)
