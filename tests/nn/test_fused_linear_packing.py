"""When a FusedLinear packs its weight, and that nobody finds it packed or changed."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from fused_linear_cases import (
    IN,
    OUT,
    Model,
    assert_packs_again,
    assert_weights,
    fused_model,
    infer,
    is_packed,
)
from torch import nn

from vleff.nn import FusedLinear


def test_a_packed_weight_has_no_second_home(packed: tuple) -> None:
    model, _, _, _ = packed
    weight = dict.__getitem__(model.first._parameters, "weight")
    assert weight.shape == (OUT, IN) and weight.isnan().all()
    assert weight.untyped_storage().nbytes() == weight.element_size()
    with pytest.raises(RuntimeError):
        weight.add_(1)  # a weight that is not there cannot be changed without notice


def test_packing_changes_no_bit(packed: tuple) -> None:
    model, _, input, output = packed
    held = list(model.parameters())
    assert torch.equal(infer(model, input), output)
    assert not is_packed(model.first) and not is_packed(model.second)
    del held
    assert_packs_again(model, input, output)


READERS: dict[str, Callable[[Model], object]] = {
    "attribute": lambda model: [model.first.weight, model.second.weight],
    "parameters": lambda model: list(model.parameters()),
    "named_parameters": lambda model: dict(model.named_parameters()),
    "get_parameter": lambda model: [model.get_parameter("first.weight"), model.get_parameter("second.weight")],
    "state_dict": lambda model: model.state_dict(),
    "state_dict with variables": lambda model: model.state_dict(keep_vars=True),
    "_parameters": lambda model: [
        read(module._parameters)
        for module in (model.first, model.second)
        for read in (
            dict,
            dict.copy,
            lambda p: {**p},
            lambda p: p["weight"],
            lambda p: p.get("weight"),
            lambda p: list(p.items()),
            lambda p: list(p.values()),
            lambda p: p | {},
        )
    ],
}


def tensors_in(found: object) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        return tensors_in(list(found.values()))
    return [x for item in found for x in tensors_in(item)] if isinstance(found, list | tuple) else []


@pytest.mark.parametrize("name", READERS)
def test_whoever_reads_a_parameter_finds_it_plain(packed: tuple, name: str) -> None:
    model, weights, input, output = packed
    matrices = [x for x in tensors_in(READERS[name](model)) if x.dim() == 2]
    assert len(matrices) >= 2
    for matrix in matrices:
        name = "first.weight" if matrix.shape == (OUT, IN) else "second.weight"
        assert torch.equal(matrix, weights[name])
    del matrix, matrices
    assert_weights(model, weights)
    assert_packs_again(model, input, output)


def test_reading_the_bias_does_not_unpack(packed: tuple) -> None:
    model, _, _, _ = packed
    assert model.first.bias is not None and "first" in repr(model)
    assert is_packed(model.first)


HOLDERS: dict[str, Callable[[Model], object]] = {
    "the parameter": lambda model: model.first.weight,
    "data": lambda model: model.first.weight.data,
    "a detached view": lambda model: model.first.weight.detach()[3:],
    "state_dict": lambda model: model.state_dict(),
    "an optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1),
    "DLPack": lambda model: torch.from_dlpack(model.first.weight.detach()),
    "a graph": lambda model: model(torch.randn(3, IN, dtype=model.first.weight.dtype)).sum(),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_weight_that_others_refer_to_stays_plain(packed: tuple, name: str) -> None:
    model, _, input, output = packed
    holder = HOLDERS[name](model)
    assert torch.equal(infer(model, input), output)
    assert "something outside this module refers to it" in model.first.explain()
    del holder
    gc.collect()
    assert_packs_again(model, input, output)


def test_a_tied_weight_stays_plain_and_a_change_through_numpy_is_seen() -> None:
    model = fused_model()
    input = torch.randn(20, IN)
    tied = nn.Embedding(OUT, IN)
    tied.weight = model.first.weight
    before = infer(model, input)
    assert not is_packed(model.first) and is_packed(model.second)
    array = tied.weight.detach().numpy()
    del tied
    array *= 2
    assert not torch.equal(infer(model, input), before)
    assert not is_packed(model.first)


def test_backward_after_an_inference_in_between() -> None:
    model = fused_model()
    input = torch.randn(20, IN, requires_grad=True)
    (expected,) = torch.autograd.grad(model(input).sum(), input)
    loss = model(input).sum()
    infer(model, input)
    (grad,) = torch.autograd.grad(loss, input)
    assert torch.equal(grad, expected)


CHANGES: dict[str, Callable[[Model], object]] = {
    "in place": lambda model: model.first.weight.detach().mul_(2),
    "through data": lambda model: model.first.weight.data.mul_(2),
    "new data": lambda model: setattr(model.first.weight, "data", model.first.weight.data * 2),
    "new parameter": lambda model: setattr(model.first, "weight", nn.Parameter(model.first.weight.data * 2)),
    "load_state_dict": lambda model: model.load_state_dict(doubled(model)),
    "load_state_dict by assignment": lambda model: model.load_state_dict(doubled(model), assign=True),
    "optimizer": lambda model: step(model),
    "_parameters": lambda model: model.first._parameters.update(weight=nn.Parameter(model.first.weight.data * 2)),
}


def doubled(model: Model) -> dict[str, torch.Tensor]:
    return {name: 2 * x if name == "first.weight" else x.clone() for name, x in model.state_dict().items()}


def step(model: Model) -> None:
    optimizer = torch.optim.SGD([model.first.weight], lr=1.0)
    model.first.weight.grad = -model.first.weight.detach().clone()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(packed: tuple, change: str) -> None:
    model, weights, input, _ = packed
    expected = Model(input.dtype)
    expected.load_state_dict(weights | {"first.weight": 2 * weights["first.weight"]})
    expected.first, expected.second = map(FusedLinear.from_linear, (expected.first, expected.second))
    CHANGES[change](model)
    gc.collect()
    assert_packs_again(model, input, infer(expected, input))


def test_a_view_held_across_inference_keeps_changing_the_weight() -> None:
    model = fused_model()
    view = model.first.weight.data
    input = torch.randn(20, IN)
    before = infer(model, input)
    view.mul_(2)
    assert not torch.equal(infer(model, input), before)


def test_unpack_and_refresh() -> None:
    fused = FusedLinear(IN, OUT)
    input = torch.randn(20, IN)
    infer(fused, input)
    for make_plain in (fused.unpack_, fused.refresh):
        assert make_plain() is fused
        assert fused.explain() == "fused_linear, weight to be packed at the next inference forward"
        infer(fused, input)
        assert is_packed(fused)
    assert not is_packed(fused.train())
    assert not is_packed(fused.eval())


def test_a_weight_read_after_every_forward_is_left_plain() -> None:
    fused = FusedLinear(IN, OUT)
    input = torch.randn(20, IN)
    for _ in range(70):
        out = infer(fused, input)
        assert fused.weight.shape == (OUT, IN)
    assert torch.equal(infer(fused, input), out) and not is_packed(fused)
    assert "read as often" in fused.explain()
    fused.refresh()
    infer(fused, input)
    assert is_packed(fused)


def test_small_and_strided_weights_stay_plain() -> None:
    small, strided = FusedLinear(16, 16), FusedLinear(IN, OUT)
    strided.weight = nn.Parameter(torch.randn(IN, OUT).T)
    infer(small, torch.randn(20, 16))
    infer(strided, torch.randn(20, IN))
    assert small.explain().endswith("packing gains less than 5 % at its size")
    assert strided.explain().endswith("it is not contiguous")


def test_threads_that_infer_and_read_at_once() -> None:
    fused = FusedLinear(IN, OUT)
    weight = fused.weight.detach().clone()
    input = torch.randn(20, IN)
    expected = infer(fused, input)
    wrong: list[str] = []

    def infer_often() -> None:
        for _ in range(300):
            if not torch.equal(infer(fused, input), expected):
                wrong.append("output")

    def read_often() -> None:
        for number in range(300):
            read = fused.weight if number % 2 else fused.state_dict()["weight"]
            if not torch.equal(read, weight):
                wrong.append("weight")
            del read
            fused.refresh()

    threads = [threading.Thread(target=target) for target in (infer_often, infer_often, read_often)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
