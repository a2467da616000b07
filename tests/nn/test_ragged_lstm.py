"""RaggedLSTM against nn.LSTM on packed sequences."""

import pytest
import torch
from attention_cases import offsets_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from vleff.nn import RaggedBatch, RaggedLSTM

LENGTHS = [5, 1, 9, 3]


def padded_lstm(lstm: nn.LSTM, values: Tensor, states: tuple[Tensor, Tensor] | None) -> Tensor:
    """Hidden states without padding: [total, directions * hidden]."""
    padded = pad_sequence(values.split(LENGTHS), batch_first=True)
    packed = pack_padded_sequence(padded, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    unpacked, _ = pad_packed_sequence(lstm(packed, states)[0], batch_first=True)
    return torch.cat([rows[:length] for rows, length in zip(unpacked, LENGTHS, strict=True)])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_it_is_nn_lstm(bidirectional: bool, initial: bool) -> None:
    lstm = nn.LSTM(7, 10, batch_first=True, bidirectional=bidirectional)
    ours = RaggedLSTM.from_lstm(lstm)
    directions = 2 if bidirectional else 1
    values, theirs = (x.requires_grad_() for x in torch.randn(18, 7).expand(2, -1, -1).clone().unbind())
    states = torch.randn(2, directions, len(LENGTHS), 10) if initial else None
    by_sample = (None, None) if states is None else states.transpose(1, 2).flatten(2).unbind()
    found, cell = ours(RaggedBatch(values, offsets_of(LENGTHS), 9), *by_sample)
    expected = padded_lstm(lstm, theirs, None if states is None else (states[0], states[1]))
    torch.testing.assert_close(found.values, expected, atol=1e-6, rtol=1e-5)
    assert cell.shape == (18, directions * 10) and not cell.requires_grad
    grad = torch.randn(18, directions * 10)
    found.values.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(values.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    ends = ["", "_reverse"][:directions]
    for name, parameter in (("weight_ih", ours.input.weight), ("bias_ih", ours.input.bias)):
        wanted = torch.cat([getattr(lstm, f"{name}_l0{end}").grad for end in ends])
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-5)
    wanted = torch.stack([getattr(lstm, f"weight_hh_l0{end}").grad for end in ends])
    torch.testing.assert_close(ours.recurrent.grad, wanted, atol=1e-5, rtol=1e-5)


def test_no_other_lstm_is_taken() -> None:
    for lstm in (nn.LSTM(3, 4, num_layers=2), nn.LSTM(3, 4, proj_size=2), nn.LSTM(3, 4, bias=False)):
        with pytest.raises(ValueError, match="argument 'lstm': expected one layer with biases and no projection"):
            RaggedLSTM.from_lstm(lstm)


def test_it_is_saved_moved_and_shown() -> None:
    ours = RaggedLSTM(3, 4, bidirectional=True)
    other = RaggedLSTM(3, 4, bidirectional=True)
    other.load_state_dict(ours.state_dict())
    batch = RaggedBatch(torch.randn(18, 3), offsets_of(LENGTHS), 9)
    assert torch.equal(ours(batch)[0].values, other(batch)[0].values)
    assert "hidden_size=4, bidirectional=True" in repr(ours)
    half = ours.bfloat16()(batch.replace(batch.values.bfloat16()))[0].values
    torch.testing.assert_close(half.float(), other(batch)[0].values, atol=2e-2, rtol=2e-2)
