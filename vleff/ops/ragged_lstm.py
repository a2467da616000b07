"""ragged_lstm: an LSTM over the rows of each sample of a ragged batch, in one direction or in both."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import vleff._library
import vleff.ops.ragged_lstm_steps  # noqa: F401  for CUDA
from vleff.ops.ragged_offsets import sample_rows


def ragged_lstm(
    gates: Tensor,
    weight: Tensor,
    offsets: Tensor,
    max_length: int,
    initial_hidden: Tensor | None = None,
    initial_cell: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrent part of an LSTM: what it makes of the gates that inputs and biases add up to.

    The rows of sample b are offsets[b] to offsets[b + 1]. With h and c of the sample's row before, at first the
    initial ones,

        i, f, g, o = gates[row] + weight h
        c          = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h          = sigmoid(o) * tanh(c)

    as in nn.LSTM, with the same order of gates. A second direction runs from a sample's last row to its first.
    Nothing is computed for padding, as there is none. Differentiable once, in gates, weight and initial states,
    through the hidden states. A sample's results, and its gradients but those of the weight, have the same bits
    in every batch and at every number of threads.

    Args:
        gates: [total, directions * 4 * width], float32, bfloat16 or float16: inputs @ weight_ih.T + biases, the
            directions one after the other.
        weight: [directions, 4 * width, width], the dtype of `gates`; 1 or 2 directions.
        offsets: int32 [batch + 1], from 0 to total, never descending.
        max_length: at least the longest sample's rows; known without reading the device.
        initial_hidden: [batch, directions * width], the dtype of `gates`; zeros if None.
        initial_cell: float32 [batch, directions * width]; zeros if None.

    Returns:
        hidden: [total, directions * width], the dtype of `gates`.
        cell: float32 [total, directions * width], not differentiable.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what
            was expected and what came.
    """
    leaves = (gates, weight, initial_hidden, initial_cell)
    differentiates = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    arguments = gates, weight, offsets, max_length, initial_hidden, initial_cell
    return torch.ops.vleff.ragged_lstm(*arguments, activations=differentiates)[:2]


def ragged_lstm_reference(
    gates: Tensor,
    weight: Tensor,
    offsets: Tensor,
    max_length: int,
    initial_hidden: Tensor | None = None,
    initial_cell: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The formulas of `ragged_lstm` in plain torch, row by row, in the dtype of `gates`; float64 goes too."""
    directions, _, width = weight.shape
    columns = directions * width
    hidden, cells = [gates.new_zeros(0, columns)], [gates.new_zeros(0, columns)]
    for sample, rows in enumerate(sample_rows(offsets)):
        of_directions = []
        for direction in range(directions):
            part = slice(direction * width, (direction + 1) * width)
            h = gates.new_zeros(width) if initial_hidden is None else initial_hidden[sample, part]
            c = gates.new_zeros(width) if initial_cell is None else initial_cell[sample, part].to(gates.dtype)
            states = []
            of_direction = gates[rows, 4 * part.start : 4 * part.stop]
            for of_row in of_direction.flip(0) if direction else of_direction:
                i, f, g, o = (of_row + weight[direction] @ h).split(width)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                states.append(torch.stack([h, c]))
            stacked = torch.stack(states) if states else gates.new_zeros(0, 2, width)
            of_directions.append(stacked.flip(0) if direction else stacked)
        together = torch.cat(of_directions, 2)
        hidden.append(together[:, 0])
        cells.append(together[:, 1])
    return torch.cat(hidden), torch.cat(cells)


@torch.library.register_fake("vleff::ragged_lstm")
def _(gates: Tensor, *arguments: Any, activations: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    total, columns = gates.shape[0], gates.shape[1] // 4
    return (
        gates.new_empty(total, columns),
        gates.new_empty(total, columns, dtype=torch.float32),
        gates.new_empty(total if activations else 0, 4 * columns),
    )


@torch.library.register_fake("vleff::ragged_lstm_backward")
def _(
    grad_hidden: Tensor, cell: Tensor, activated: Tensor, gates: Tensor, weight: Tensor, offsets: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, columns = offsets.shape[0] - 1, gates.shape[1] // 4
    return (
        gates.new_empty(gates.shape),
        gates.new_empty(batch, columns),
        gates.new_empty(batch, columns, dtype=torch.float32),
    )


def _save_for_backward(ctx: Any, inputs: tuple, keyword_only_inputs: dict[str, Any], output: tuple) -> None:
    gates, weight, offsets, max_length, initial_hidden, initial_cell = inputs
    hidden, cell, activated = output
    ctx.save_for_backward(gates, weight, offsets, initial_hidden, initial_cell, hidden, cell, activated)
    ctx.max_length, ctx.has_activations = max_length, keyword_only_inputs["activations"]
    ctx.mark_non_differentiable(cell, activated)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_hidden: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gates, weight, offsets, initial_hidden, initial_cell, hidden, cell, activated = ctx.saved_tensors
    if not ctx.has_activations:
        raise RuntimeError(
            "ragged_lstm: argument 'activations': expected True where gradients are asked for, got False"
        )
    if grad_hidden is None:
        return (None,) * 6
    inputs = gates, weight, offsets, ctx.max_length, initial_hidden, initial_cell
    grad_gates, grad_initial_hidden, grad_initial_cell = torch.ops.vleff.ragged_lstm_backward(
        grad_hidden, cell, activated, *inputs
    )
    grad_weight = None
    if ctx.needs_input_grad[1]:
        before = _hidden_before(hidden, weight.shape, offsets, initial_hidden)
        by_direction = grad_gates.unflatten(1, (weight.shape[0], -1)).permute(1, 2, 0)
        grad_weight = by_direction @ before.unflatten(1, (weight.shape[0], -1)).transpose(0, 1)
    return (
        grad_gates,
        grad_weight,
        None,
        None,
        None if initial_hidden is None else grad_initial_hidden,
        None if initial_cell is None else grad_initial_cell,
    )


def _hidden_before(hidden: Tensor, weight_shape: torch.Size, offsets: Tensor, initial_hidden: Tensor | None) -> Tensor:
    """The states that met the weight: [total, directions * width]."""
    directions, _, width = weight_shape
    total = hidden.shape[0]
    offsets = offsets.long().clamp(0, total)
    filled = offsets.diff() > 0
    if initial_hidden is None:
        initial_hidden = hidden.new_zeros(offsets.shape[0] - 1, hidden.shape[1])
    before = hidden.new_zeros(total + 1, hidden.shape[1])  # the last row is for samples without any
    first = offsets[:-1].masked_fill(~filled, total)
    before[1:total, :width] = hidden[: max(total - 1, 0), :width]
    before[:, :width].index_copy_(0, first, initial_hidden[:, :width])
    if directions == 2:
        last = (offsets[1:] - 1).masked_fill(~filled, total)
        before[: max(total - 1, 0), width:] = hidden[1:, width:]
        before[:, width:].index_copy_(0, last, initial_hidden[:, width:])
    return before[:total]


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "ragged_lstm: second derivatives: expected a graph that is differentiated once, got a gradient of its "
        "gradient. ragged_lstm_reference has them."
    )


torch.library.register_autograd("vleff::ragged_lstm", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("vleff::ragged_lstm_backward", _no_second_derivative)


@register_flop_formula(torch.ops.vleff.ragged_lstm)
def _(gates_shape: torch.Size, weight_shape: torch.Size, *arguments: Any, **options: Any) -> int:
    """Two operations a multiply-add of hidden states and weight."""
    return 2 * gates_shape[0] * gates_shape[1] * weight_shape[2]


@register_flop_formula(torch.ops.vleff.ragged_lstm_backward)
def _(
    grad_shape: torch.Size,
    cell_shape: torch.Size,
    activated_shape: torch.Size,
    gates_shape: torch.Size,
    weight_shape: torch.Size,
    *arguments: Any,
    **options: Any,
) -> int:
    """The product that gives the gradient of the states; that of the weight is a product of torch."""
    return 2 * gates_shape[0] * gates_shape[1] * weight_shape[2]
