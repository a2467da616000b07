"""MaskedLinear: results, gradients, and everything that happens to a module in its life."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd import forward_ad, gradcheck

from vleff import choices
from vleff.nn import FusedLinear, MaskedLinear, masked_feed_forward
from vleff.ops import MaskedStructure
from vleff.ops.fused_linear import ACTIVATIONS, activate

IN, OUT = 200, 150
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def masked_and_dense(
    density: float = 0.2, dtype: torch.dtype = torch.float32, sizes: tuple[int, int] = (OUT, IN)
) -> tuple[MaskedLinear, nn.Linear]:
    """A MaskedLinear and an nn.Linear with the same weight, zero outside of a random mask."""
    dense = nn.Linear(sizes[1], sizes[0], dtype=dtype)
    mask = torch.rand(sizes) < density
    with torch.no_grad():
        dense.weight.mul_(mask)
    return MaskedLinear.from_dense(dense, mask), dense


@pytest.fixture(autouse=True)
def _sparse_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the committed table has it where no level of instructions makes dense products faster."""
    content = {name: entry for name, entry in choices.table().content.items() if name != "levels"}
    monkeypatch.setattr(choices, "table", lambda: choices.Table(choices.COMMITTED, content))


def infer(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(*inputs)


@pytest.mark.parametrize("tokens", [1, 3, 5, 70])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_computes_what_the_dense_one_does(activation: str, tokens: int) -> None:
    masked, dense = masked_and_dense()
    masked = masked.with_activation(activation)
    input, residual = torch.randn(tokens, IN), torch.randn(tokens, OUT)
    expected = activate(dense(input), activation) + residual
    torch.testing.assert_close(infer(masked, input, residual), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(masked(input, residual), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype, cpu_isa: str) -> None:
    masked, _ = masked_and_dense(0.3, dtype)
    input = torch.randn(70, IN).to(dtype)
    together = infer(masked, input)
    assert masked._prepared.steps is None
    for count in range(1, 6):
        assert torch.equal(infer(masked, input[:count]), together[:count]), count
    assert masked._prepared.steps is not None


def test_gradients_are_those_of_the_elements() -> None:
    masked, dense = masked_and_dense()
    input = torch.randn(40, IN, requires_grad=True)
    masked(input).square().sum().backward()
    input_grad, input.grad = input.grad, None
    dense(input).square().sum().backward()
    torch.testing.assert_close(input_grad, input.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masked.values.grad, masked.structure.gather(dense.weight.grad), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(masked.bias.grad, dense.bias.grad, atol=1e-3, rtol=1e-4)


def test_training_never_brings_a_pruned_weight_to_life() -> None:
    masked, _ = masked_and_dense()
    zeros = masked.weight == 0
    optimizer = torch.optim.AdamW(masked.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        masked(torch.randn(20, IN)).square().sum().backward()
        optimizer.step()
    assert torch.equal(masked.weight == 0, zeros)
    states = [state for state in optimizer.state.values() for state in state.values() if state.dim()]
    assert {tuple(state.shape) for state in states} == {masked.values.shape, masked.bias.shape}
    with torch.no_grad():
        torch.testing.assert_close(
            masked(torch.ones(2, IN)), masked.to_dense()(torch.ones(2, IN)), atol=1e-4, rtol=1e-4
        )


def test_from_and_to_dense() -> None:
    masked, dense = masked_and_dense()
    back = masked.to_dense()
    assert type(back) is nn.Linear and torch.equal(back.weight, dense.weight) and torch.equal(back.bias, dense.bias)
    assert torch.equal(masked.weight, dense.weight) and masked.weight.requires_grad
    frozen = nn.Linear(4, 3, bias=False).requires_grad_(False).eval()
    masked = MaskedLinear.from_dense(frozen, torch.ones(3, 4, dtype=torch.bool))
    assert masked.bias is None and not masked.values.requires_grad and not masked.training
    assert not masked.to_dense().weight.requires_grad and masked.to_dense().bias is None
    fused = FusedLinear(4, 3, activation="gelu")
    assert MaskedLinear.from_dense(fused, torch.ones(3, 4, dtype=torch.bool)).activation == "gelu"


def test_masks_without_any_and_with_every_element() -> None:
    for share in (0.0, 1.0):
        masked, dense = masked_and_dense(share)
        input = torch.randn(5, IN)
        torch.testing.assert_close(infer(masked, input), infer(dense, input), atol=1e-5, rtol=1e-5)
        masked(input).sum().backward()
        assert masked.values.grad.shape == masked.values.shape


def test_bad_input() -> None:
    linear, mask = nn.Linear(4, 3), torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"'linear': expected an nn.Linear, got Conv1d"):
        MaskedLinear.from_dense(nn.Conv1d(1, 1, 1), mask)
    with pytest.raises(ValueError, match=r"'mask': expected bool \[3, 4\], got \[4, 3\]"):
        MaskedLinear.from_dense(linear, mask.T)
    with pytest.raises(TypeError, match=r"argument 'mask': expected torch\.bool, got torch\.float32"):
        MaskedLinear.from_dense(linear, mask.float())
    masked = MaskedLinear.from_dense(linear, mask)
    with pytest.raises(ValueError, match=r"'activation': expected one of none.*, got 'cosine'"):
        masked.with_activation("cosine")
    sparse, _ = masked_and_dense()
    with pytest.raises(RuntimeError, match="starts"):
        sparse(torch.randn(2, IN - 150))


@pytest.mark.parametrize("change", ["copy_", "optimizer", "load", "assign", "data", "swap"])
def test_changed_values_are_seen(change: str) -> None:
    masked, _ = masked_and_dense()
    input = torch.randn(1, IN)
    infer(masked, input)
    new = torch.randn_like(masked.values)
    if change == "copy_":
        with torch.no_grad():
            masked.values.copy_(new)
    elif change == "optimizer":
        masked(input).sum().backward()
        torch.optim.SGD(masked.parameters(), lr=1.0).step()
    elif change == "load":
        masked.load_state_dict(masked.state_dict() | {"values": new})
    elif change == "assign":
        masked.load_state_dict(masked.state_dict() | {"values": new}, assign=True)
    elif change == "data":
        masked.values.data.copy_(new)
        masked.refresh()
    else:
        masked.values = nn.Parameter(new)
    torch.testing.assert_close(infer(masked, input), infer(masked.to_dense(), input), atol=1e-5, rtol=1e-5)


def test_copies_and_files(tmp_path: Path) -> None:
    masked, _ = masked_and_dense()
    input = torch.randn(2, IN)
    expected = infer(masked, input)
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked)), copy.copy(masked)):
        assert torch.equal(infer(twin, input), expected)
    twin = copy.deepcopy(masked)
    with torch.no_grad():
        twin.values.zero_()
    assert torch.equal(infer(masked, input), expected)
    save_file(masked.state_dict(), tmp_path / "weights.safetensors")
    other = MaskedLinear(masked.structure)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(infer(other, input), expected)
    torch.save(masked.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(infer(other, input), expected)


def test_a_loaded_structure_takes_the_place_of_another() -> None:
    mask = torch.zeros(OUT, IN, dtype=torch.bool)
    mask[:, :50] = True
    first, second = (MaskedLinear.from_dense(nn.Linear(IN, OUT), m) for m in (mask, mask.flip(1)))
    input = torch.randn(30, IN)
    first(input.requires_grad_()).sum().backward()  # makes the transposed structure
    first.load_state_dict(second.state_dict())
    assert torch.equal(infer(first, input), infer(second, input))
    grads = []
    for module in (first, second):
        leaf = input.detach().requires_grad_()
        module(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    broken = second.state_dict()
    broken["starts"] = broken["starts"].flip(0)
    with pytest.raises(ValueError, match="starts: expected numbers that never descend"):
        first.load_state_dict(broken)


def test_dtypes_and_devices() -> None:
    masked, dense = masked_and_dense()
    input = torch.randn(20, IN)
    for dtype in DTYPES:
        module = copy.deepcopy(masked).to(dtype)
        assert module.values.dtype == module.bias.dtype == dtype and module.starts.dtype == torch.int32
        out = infer(module, input.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), infer(dense, input), atol=0.1, rtol=0.05)
    double = copy.deepcopy(masked).double()
    assert "no float64 on cpu" in double.explain()
    torch.testing.assert_close(infer(double, input.double()), infer(dense.double(), input.double()))
    assert infer(copy.deepcopy(masked).to("meta"), input.to("meta")).shape == (20, OUT)
    assert gradcheck(lambda x: double(x), torch.randn(3, IN, dtype=torch.float64, requires_grad=True))


def test_autocast() -> None:
    masked, dense = masked_and_dense()
    input = torch.randn(20, IN)
    with torch.autocast("cpu", torch.bfloat16):
        out = masked(input)
        out.float().square().sum().backward()
        assert infer(masked, input[:1]).dtype == torch.bfloat16
    assert out.dtype == torch.bfloat16 and masked.values.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), dense(input), atol=0.05, rtol=0.05)


def test_forward_mode_and_transforms() -> None:
    masked, dense = masked_and_dense()
    input, tangent = torch.randn(3, IN), torch.randn(3, IN)
    with forward_ad.dual_level():
        ours, plain = (
            forward_ad.unpack_dual(module(forward_ad.make_dual(input, tangent))) for module in (masked, dense)
        )
    torch.testing.assert_close(ours.tangent, plain.tangent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.func.vmap(masked)(input), torch.func.vmap(dense)(input), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("density", [0.2, 1.0], ids=["sparse", "dense"])
def test_compiles_whole(density: float) -> None:
    masked, dense = masked_and_dense(density)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(masked, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (6, 40, 17):
        input = torch.randn(tokens, IN)
        torch.testing.assert_close(infer(compiled, input), infer(dense, input), atol=1e-5, rtol=1e-5)
    for tokens in (6, 40):
        input = torch.randn(tokens, IN, requires_grad=True)
        compiled(input).square().sum().backward()
        actual, input.grad = input.grad, None
        dense(input).square().sum().backward()
        torch.testing.assert_close(actual, input.grad, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_export() -> None:
    masked, dense = masked_and_dense()
    input = torch.randn(5, IN)
    tokens = torch.export.Dim("tokens", min=2, max=100)
    with torch.no_grad():
        program = torch.export.export(masked.eval(), (input,), dynamic_shapes=({0: tokens},))
        torch.testing.assert_close(program.module()(torch.randn(9, IN) * 0 + 1), dense(torch.ones(9, IN)))


def test_the_choice_table_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, _ = masked_and_dense(0.2)
    assert masked.explain().startswith("masked_linear, ") and "% zeros" in masked.explain()
    content = {"masked_linear": {"float32": {"densest": 0.1}}}
    monkeypatch.setattr(choices, "table", lambda: choices.Table(choices.COMMITTED, content))
    masked, dense = masked_and_dense(0.2)
    assert "because a dense product is faster" in masked.explain()
    input = torch.randn(20, IN)
    torch.testing.assert_close(infer(masked, input), infer(dense, input), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        masked.values.mul_(2)
        dense.weight.mul_(2)
    torch.testing.assert_close(infer(masked, input), infer(dense, input), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dense_product_has_the_same_bits_compiled(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"masked_linear": {str(dtype).removeprefix("torch."): {"densest": 0.1}}}
    monkeypatch.setattr(choices, "table", lambda: choices.Table(choices.COMMITTED, content))
    masked = masked_and_dense(0.3, dtype)[0].with_activation("gelu")
    assert "because a dense product is faster" in masked.explain()
    input, residual = torch.randn(70, IN).to(dtype), torch.randn(70, OUT).to(dtype)
    compiled = torch.compile(masked, backend="eager", fullgraph=True)
    assert torch.equal(infer(compiled, input, residual), infer(masked, input, residual))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_feed_forward_in_panels_has_the_bits_of_two(activation: str, dtype: torch.dtype, cpu_isa: str) -> None:
    first = masked_and_dense(0.2, dtype, (300, IN))[0].with_activation(activation)
    second, _ = masked_and_dense(0.3, dtype, (OUT, 300))
    for tokens in (0, 1, 63, 64, 65, 200):
        input, residual = torch.randn(tokens, IN).to(dtype), torch.randn(tokens, OUT).to(dtype)
        with torch.no_grad():
            actual = masked_feed_forward(first, second, input, residual)
            assert torch.equal(actual, second(first(input), residual)), tokens
    input = torch.randn(70, IN, requires_grad=dtype == torch.float32).to(dtype)
    assert masked_feed_forward(first, second, input).requires_grad


def test_structures_do_not_have_to_be_square() -> None:
    for sizes in ((1, 1), (1, 300), (300, 1), (17, 33)):
        masked, dense = masked_and_dense(0.4, sizes=sizes)
        assert isinstance(masked.structure, MaskedStructure)
        input = torch.randn(7, sizes[1])
        torch.testing.assert_close(infer(masked, input), infer(dense, input), atol=1e-5, rtol=1e-5)


def test_hooks_of_a_pair_are_called() -> None:
    first, second = masked_and_dense(0.2, sizes=(300, IN))[0], masked_and_dense(0.3, sizes=(OUT, 300))[0]
    input = torch.randn(200, IN)
    expected = infer(lambda x: masked_feed_forward(first, second, x), input)
    for module in (first, second):
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            seen: list[int] = []
            handle = register(lambda *_, seen=seen: seen.append(1))
            assert torch.equal(infer(lambda x: masked_feed_forward(first, second, x), input), expected)
            assert seen == [1]
            handle.remove()


@pytest.mark.parametrize("change", ["assign", "dtype", "structure"])
def test_a_twin_sees_what_happens_to_the_other(change: str) -> None:
    masked, _ = masked_and_dense()
    twin = masked.with_activation("relu")
    input = torch.randn(2, IN)
    infer(masked, input)
    if change == "assign":
        new = torch.randn_like(masked.values)
        twin.load_state_dict(twin.state_dict() | {"values": new}, assign=True)
        assert torch.equal(masked.values, new)
    elif change == "dtype":
        twin.bfloat16()
        input = input.bfloat16()
    else:
        mask = masked.structure.mask().flip(0)
        other = MaskedStructure.from_mask(mask, masked.structure.row_chunk, masked.structure.column_block)
        state = dict(
            zip(("starts", "order", "block_columns"), (other.starts, other.order, other.block_columns), strict=True)
        )
        twin.load_state_dict(twin.state_dict() | state)
        assert torch.equal(masked.weight != 0, mask)
    assert torch.equal(infer(masked, input).relu(), infer(twin, input))
    torch.testing.assert_close(infer(masked, input), infer(masked.to_dense(), input), atol=3e-2, rtol=3e-2)
