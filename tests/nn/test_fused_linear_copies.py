"""Copies, pickles and files of a FusedLinear with a packed weight."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from fused_linear_cases import (
    Model,
    assert_packs_again,
    assert_weights,
    infer,
)

COPIES: dict[str, Callable[[Model], Model]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: saved_and_loaded(model),
}


def saved_and_loaded(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_independent(packed: tuple, name: str) -> None:
    model, weights, input, output = packed
    other = COPIES[name](model)
    assert_weights(other, weights)
    assert_packs_again(other, input, output)
    assert_packs_again(model, input, output)
    other.first.weight.data.zero_()
    assert_weights(model, weights)
    assert_packs_again(model, input, output)


def test_a_shallow_copy_shares_the_parameters(packed: tuple) -> None:
    model, _, input, _ = packed
    first = infer(model.first, input)
    other = copy.copy(model.first)
    assert torch.equal(infer(other, input), first)
    assert other.weight is model.first.weight
    other.weight.data.zero_()
    assert not torch.equal(infer(model.first, input), first)


def test_state_dict_file_loads_into_plain_linears(packed: tuple) -> None:
    model, weights, _, _ = packed
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain = Model(weights["first.weight"].dtype)
    plain.load_state_dict(torch.load(file))
    assert_weights(plain, weights)
