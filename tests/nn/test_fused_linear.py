"""FusedLinear: its results, and the life of a weight that is packed while the module infers."""

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune

from vleff.nn import FusedLinear
from vleff.ops import fused_linear, packs_linear_weight
from vleff.ops.fused_linear import ACTIVATIONS, activate

IN, OUT = 256, 128
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if packs_linear_weight(dtype)]


class Model(nn.Module):
    """A user's model around two linears."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(IN, OUT, dtype=dtype)
        self.second: nn.Module = nn.Linear(OUT, IN, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.gelu(self.first(input)))


def fused_model(dtype: torch.dtype = torch.float32) -> Model:
    model = Model(dtype)
    model.first, model.second = FusedLinear.from_linear(model.first), FusedLinear.from_linear(model.second)
    return model


def infer(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(*inputs)


def is_packed(*modules: nn.Module) -> bool:
    return all("weight packed" in module.explain() for module in modules)


@pytest.fixture(params=DTYPES, ids=str)
def packed(request: pytest.FixtureRequest) -> tuple[Model, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A model with packed weights, its plain weights, an input and what the model makes of it."""
    model = fused_model(request.param)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    input = torch.randn(20, IN, dtype=request.param)
    output = infer(model, input)
    assert is_packed(model.first, model.second)
    return model, weights, input, output


def assert_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert list(state) == list(weights)
    for name, weight in weights.items():
        assert torch.equal(state[name], weight), name


def assert_packs_again(model: nn.Module, input: torch.Tensor, output: torch.Tensor) -> None:
    assert torch.equal(infer(model, input), output)
    assert is_packed(model.first, model.second)


# Results


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inference_is_the_op_and_training_is_plain_torch(activation: str, residual: bool) -> None:
    linear = nn.Linear(IN, OUT)
    fused = FusedLinear.from_linear(linear, activation)
    input, added = torch.randn(20, IN), torch.randn(20, OUT) if residual else None
    plain = activate(nn.functional.linear(input, linear.weight, linear.bias), activation)
    plain = plain if added is None else plain + added
    assert torch.equal(fused(input, added), plain)
    expected = fused_linear(input, linear.weight, linear.bias, added, activation)
    assert torch.equal(infer(fused, input, added), expected)
    with torch.inference_mode():
        assert torch.equal(fused(input, added), expected)


def test_it_stands_for_a_linear() -> None:
    fused = FusedLinear(IN, OUT, bias=False, dtype=torch.bfloat16, activation="gelu")
    assert isinstance(fused, nn.Linear)
    assert fused.bias is None and fused.weight.dtype == torch.bfloat16
    assert repr(fused) == "FusedLinear(in_features=256, out_features=128, bias=False, activation=gelu)"
    assert infer(fused, torch.randn(2, 3, IN, dtype=torch.bfloat16)).shape == (2, 3, OUT)


def test_autocast_is_left_to_torch() -> None:
    fused = FusedLinear(IN, OUT)
    input = torch.randn(20, IN)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = fused(input)
        expected = nn.functional.linear(input, fused.weight, fused.bias)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


def test_gradients_flow_whatever_requires_them() -> None:
    fused = FusedLinear(IN, OUT, activation="gelu").eval().requires_grad_(False)
    input, residual = torch.randn(20, IN), torch.randn(20, OUT)
    fused(input, residual)
    assert is_packed(fused)  # gradients are enabled, but nothing requires one
    for leaf in (input, residual, fused.weight, fused.bias):
        leaf.requires_grad_()
        out = fused(input, residual)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert grad.abs().sum() > 0
        leaf.requires_grad_(False)


def test_wrong_arguments_are_named() -> None:
    fused = FusedLinear(IN, OUT)
    with pytest.raises(RuntimeError, match="fused_linear: argument 'weight': expected"):
        infer(fused, torch.randn(4, IN + 1))
    with pytest.raises(RuntimeError, match="fused_linear: argument 'residual': expected"):
        infer(fused, torch.randn(4, IN), torch.randn(4, IN))
    with pytest.raises(ValueError, match="argument 'activation': expected one of none, gelu"):
        FusedLinear(IN, OUT, activation="tanh")
    for wrong in (nn.Identity(), nn.Bilinear(2, 2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))):
        with pytest.raises(TypeError, match=r"argument 'linear': expected an nn.Linear"):
            FusedLinear.from_linear(wrong)


# Packing


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
    "NumPy": lambda model: model.first.weight.detach().float().numpy(),
    "DLPack": lambda model: torch.from_dlpack(model.first.weight.detach()),
    "a tied layer": lambda model: nn.Linear(IN, OUT)._parameters.update(weight=model.first.weight),
    "a graph": lambda model: model(torch.randn(3, IN, dtype=model.first.weight.dtype)).sum(),
}


@pytest.mark.parametrize("name", [name for name in HOLDERS if name not in ("NumPy", "a tied layer")])
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


# Changes


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


# Life-cycle of the module


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_conversion_to_another_dtype(packed: tuple, dtype: torch.dtype) -> None:
    model, weights, input, _ = packed
    parameter = model.first.weight
    assert model.to(dtype).first.weight is parameter
    del parameter
    assert_weights(model, {name: weight.to(dtype) for name, weight in weights.items()})
    plain = Model(dtype)
    plain.load_state_dict(model.state_dict())
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        infer(model, input.to(dtype)), infer(plain, input.to(dtype)), rtol=tolerance, atol=tolerance
    )
    assert is_packed(model.first) == packs_linear_weight(dtype)
    if not packs_linear_weight(dtype):
        assert f"oneDNN takes no {dtype} on cpu".replace("torch.", "") in model.first.explain()


def test_half_bfloat16_float(packed: tuple) -> None:
    model, weights, input, _ = packed
    for convert, dtype in ((nn.Module.half, torch.float16), (nn.Module.bfloat16, torch.bfloat16)):
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
        assert_weights(convert(model), weights)
        infer(model, input.to(dtype))
    assert_weights(model.float(), {name: weight.float() for name, weight in weights.items()})


def test_to_another_device(packed: tuple) -> None:
    model, _, _, _ = packed
    assert model.to("meta").first.weight.is_meta
    assert infer(model, torch.empty(20, IN, device="meta", dtype=model.first.weight.dtype)).is_meta
    assert "on meta" in model.first.explain()


def test_share_memory(packed: tuple) -> None:
    model, weights, input, output = packed
    model.share_memory()
    assert model.first.weight.is_shared()
    assert_weights(model, weights)
    assert torch.equal(infer(model, input), output)
    assert "shared with other processes" in model.first.explain()


def test_requires_grad_and_zero_grad(packed: tuple) -> None:
    model, weights, input, output = packed
    model.requires_grad_(False)
    assert not model.first.weight.requires_grad
    assert torch.equal(model(input), output) and is_packed(model.first)
    model.requires_grad_(True)
    model.zero_grad()
    assert_weights(model, weights)
    assert model(input).requires_grad


def test_training_between_inferences(packed: tuple) -> None:
    model, weights, input, _ = packed
    plain = Model(input.dtype)
    plain.load_state_dict(weights)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    for _ in range(3):
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            m(input).float().square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(infer(model, input), infer(plain, input), rtol=2e-2, atol=1e-5)
    assert_weights(model, plain.state_dict())
    assert not is_packed(model.first)  # an optimizer refers to it
    del optimizers, optimizer, m
    gc.collect()
    infer(model, input)
    assert is_packed(model.first, model.second)


def test_parametrization_and_pruning(packed: tuple) -> None:
    model, _, input, _ = packed
    prune.l1_unstructured(model.first, "weight", amount=0.5)
    pruned = nn.functional.linear(input, model.first.weight, model.first.bias)
    torch.testing.assert_close(infer(model.first, input), pruned.detach(), rtol=1e-2, atol=1e-3)
    prune.remove(model.first, "weight")
    torch.testing.assert_close(infer(model.first, input), pruned.detach(), rtol=1e-2, atol=1e-3)
    norm = nn.utils.parametrizations.weight_norm(model.second)
    assert norm(torch.randn(4, OUT, dtype=input.dtype)).requires_grad


def test_functional_call_and_vmap(packed: tuple) -> None:
    model, weights, input, output = packed
    twice = {"weight": 2 * weights["first.weight"], "bias": weights["first.bias"]}
    out = torch.func.functional_call(model.first, twice, input)
    torch.testing.assert_close(out, nn.functional.linear(input, *twice.values()), rtol=1e-2, atol=1e-3)
    stacked = torch.stack([input, 2 * input])
    mapped = torch.func.vmap(lambda x: infer(model, x))(stacked)
    torch.testing.assert_close(mapped[0], output, rtol=2e-2, atol=1e-2)
    assert_packs_again(model, input, output)


def test_tangents_pass_through(packed: tuple) -> None:
    model, weights, input, _ = packed
    tangent = torch.randn_like(input)
    with torch.no_grad(), forward_ad.dual_level():
        out = model.first(forward_ad.make_dual(input, tangent))
        actual = forward_ad.unpack_dual(out).tangent
    assert torch.equal(actual, nn.functional.linear(tangent, weights["first.weight"]))


def test_from_linear_and_back() -> None:
    linear = nn.Linear(IN, OUT).eval()
    weight, bias = linear.weight, linear.bias
    values = weight.detach().clone()
    fused = FusedLinear.from_linear(linear, "gelu")
    assert fused.weight is weight and fused.bias is bias and not fused.training
    del weight
    input = torch.randn(20, IN)
    infer(fused, input)
    assert is_packed(fused)
    torch.testing.assert_close(linear(input), nn.functional.linear(input, values, bias))  # still usable
    infer(fused, input)
    identity = id(dict.__getitem__(fused._parameters, "weight"))
    fused.move_parameters_to(linear)
    assert type(linear._parameters) is dict
    assert id(linear.weight) == identity and linear.bias is bias
    assert torch.equal(linear.weight, values)
    back = fused.to_linear()
    assert type(back) is nn.Linear and back.weight is linear.weight and not back.training
    assert repr(back) == repr(linear)


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


# torch.compile


@pytest.mark.parametrize("packed_first", [False, True], ids=["plain", "packed"])
def test_compiles_to_one_graph(packed_first: bool) -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    inputs = [torch.randn(rows, IN) for rows in (40, 7, 65)]
    expected = [infer(model, input) for input in inputs]
    if not packed_first:
        model.first.unpack_()
        model.second.unpack_()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for number, (input, output) in enumerate(zip(inputs, expected, strict=True)):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            torch.testing.assert_close(infer(compiled, input), output)
    assert is_packed(model.first) == packed_first


def test_compiled_model_sees_packing_and_changes() -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    input = torch.randn(20, IN)
    plain = infer(compiled, input)
    assert not is_packed(model.first)
    torch.testing.assert_close(infer(model, input), plain)
    assert is_packed(model.first)
    torch.testing.assert_close(infer(compiled, input), plain)
    model.first.weight.data.mul_(2)
    changed = infer(compiled, input)
    torch.testing.assert_close(infer(model, input), changed)
    assert not torch.allclose(changed, plain)


def test_eager_and_compiled_inference_alternate_without_recompiling() -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    input = torch.randn(20, IN)
    output = infer(model, input)
    infer(compiled, input)
    model.first.unpack_()
    infer(compiled, input)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            assert torch.equal(infer(model, input), output)
            assert is_packed(model.first, model.second)
            torch.testing.assert_close(infer(compiled, input), output)
            model.first.unpack_()
            torch.testing.assert_close(infer(compiled, input), output)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export_of_a_packed_model(strict: bool) -> None:
    model = fused_model().eval()
    input = torch.randn(20, IN)
    output = infer(model, input)
    with torch.no_grad():
        exported = torch.export.export(
            model, (input,), strict=strict, dynamic_shapes=({0: torch.export.Dim("rows", min=2)},)
        )
    assert set(exported.state_dict) == set(model.state_dict())
    torch.testing.assert_close(infer(exported.module(), input), output)
    torch.testing.assert_close(infer(exported.module(), input[:3]), output[:3])


def test_compiled_training_after_inference() -> None:
    torch._dynamo.reset()
    model = fused_model().eval()
    input = torch.randn(20, IN)
    infer(model, input)
    model.train()
    torch.compile(model, fullgraph=True)(input).sum().backward()
    grad = model.first.weight.grad
    model.zero_grad()
    model(input).sum().backward()
    torch.testing.assert_close(grad, model.first.weight.grad)
