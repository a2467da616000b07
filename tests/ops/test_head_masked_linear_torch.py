"""head_masked_linear inside torch: opcheck, torch.compile, export, FLOP counts, profiler, and what it refuses."""

from typing import Any

import pytest
import torch
from head_masked_cases import DIFFERENTIABLE, DIRECTIONS, Inputs, gradients, kept_tokens, make_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import pack_head_masked_weight

both_directions = pytest.mark.parametrize("direction", DIRECTIONS)
OPS = {name: getattr(torch.ops.vleff, f"head_masked_{name}").default for name in DIRECTIONS}
# torch.compile gives sizes 0 and 1 graphs of their own, and at first takes equal sizes for one: so 5 heads
BATCHES = [[3, 4], [5, 1, 7], [2, 30, 5], [0, 9], [1, 2, 3, 4, 5]]


def positional(op: Any, inputs: Inputs) -> tuple:
    return tuple(inputs.get(a.name, a.default_value if a.has_default_value() else None) for a in op._schema.arguments)


@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", ""])
@both_directions
def test_opcheck(direction: str, with_mask: bool) -> None:
    inputs = make_inputs(direction, [5, 4, 2, 3])
    if direction == "project":
        inputs["index"] = torch.randint(14, (14,))
    if not with_mask:
        inputs["head_mask"] = None
    leaves = {name: inputs[name].requires_grad_() for name in DIFFERENTIABLE if name in inputs}
    torch.library.opcheck(OPS[direction], positional(OPS[direction], inputs | leaves))


@pytest.mark.parametrize("bias_grad", [True, False])
def test_opcheck_of_the_gradient(bias_grad: bool) -> None:
    inputs = make_inputs("project", [5, 4, 2, 3])
    grad = torch.randn(14, len(inputs["weight"]))
    op = torch.ops.vleff.head_masked_grad_weight.default
    arguments = (grad, inputs["input"], inputs["offsets"], inputs["head_mask"], torch.arange(14), 3, bias_grad)
    torch.library.opcheck(op, arguments)


@both_directions
def test_compiles_once_for_all_token_counts(direction: str) -> None:
    torch._dynamo.reset()

    def layer(**inputs: Any) -> Tensor:
        return DIRECTIONS[direction][0](**inputs) * 2

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for number, lengths in enumerate(BATCHES):
        inputs = make_inputs(direction, lengths, heads=5)
        if direction == "project":
            inputs["index"] = torch.randperm(sum(lengths))
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = gradients(compiled, inputs, grad := torch.ones(sum(lengths), len(inputs["weight"])))
        for name, expected in gradients(layer, inputs, grad).items():
            torch.testing.assert_close(actual[name], expected)
    with torch.inference_mode():
        assert torch.equal(compiled(**inputs), layer(**inputs))


@both_directions
def test_exports_with_dynamic_token_counts(direction: str) -> None:
    inputs = make_inputs(direction, [3, 4, 5])

    class Layer(torch.nn.Module):
        def forward(self, input: Tensor, offsets: Tensor, head_mask: Tensor) -> Tensor:
            given = inputs | {"input": input, "offsets": offsets, "head_mask": head_mask}
            given.pop("residual", None)
            return DIRECTIONS[direction][0](**given)

    shapes = ({0: torch.export.Dim("tokens")}, {0: torch.export.Dim("offsets")}, {0: torch.export.Dim("batch")})
    arguments = (inputs["input"], inputs["offsets"], inputs["head_mask"])
    program = torch.export.export(Layer(), arguments, dynamic_shapes=shapes)
    other = make_inputs(direction, [30, 2])
    arguments = (other["input"], other["offsets"], other["head_mask"])
    assert torch.equal(program.module()(*arguments), Layer()(*arguments))


@both_directions
def test_flops_count_kept_heads(direction: str) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, [5, 4, 2, 3], heads=3, head_dim=16, width=48)
    blocks, parts = int(kept_tokens(inputs).sum()), inputs.get("parts", 1)
    leaves = {name: inputs[name].requires_grad_() for name in ("input", "weight")}
    with FlopCounterMode(display=False) as counter:
        out = function(**inputs | leaves)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * blocks * parts * 16 * 48
    assert counter.get_total_flops() == 3 * forward
    with FlopCounterMode(display=False) as counter:
        function(**inputs | {"head_mask": None})
    assert counter.get_total_flops() == 2 * 14 * parts * 3 * 16 * 48


def test_flops_of_tensors_without_data_count_all_heads() -> None:
    inputs = make_inputs("reduce", [5, 4, 2, 3], heads=3, head_dim=16, width=48)
    meta = {name: x.to("meta") for name, x in inputs.items()}
    with FlopCounterMode(display=False) as counter:
        assert DIRECTIONS["reduce"][0](**meta).is_meta
    assert counter.get_total_flops() == 2 * 14 * 3 * 16 * 48


@both_directions
def test_profiler_names_forward_and_backward(direction: str) -> None:
    inputs = make_inputs(direction, [5, 3])
    with torch.profiler.profile() as profile:
        gradients(DIRECTIONS[direction][0], inputs, torch.ones(8, len(inputs["weight"])))
    names = {event.key for event in profile.key_averages()}
    assert {f"vleff::head_masked_{direction}", "vleff::head_masked_grad_weight"} <= names


@both_directions
def test_second_derivatives_are_refused(direction: str) -> None:
    function, reference = DIRECTIONS[direction]
    inputs = make_inputs(direction, [5])
    weight = inputs["weight"].requires_grad_()
    (grad,) = torch.autograd.grad(function(**inputs).square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{reference.__name__}"):
        grad.sum().backward()


OTHER = {"project": "reduce", "reduce": "project"}


def packed(weight: Tensor, direction: str, heads: int, parts: int | None = None) -> Tensor:
    parts = parts or (3 if direction == "project" else 1)
    return pack_head_masked_weight(weight, direction, heads, parts)


@both_directions
def test_bad_input_is_named(direction: str) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, [5, 4, 2, 3], heads=3, head_dim=16, width=48)
    offsets = inputs["offsets"]
    other_mask = torch.ones(4, 5, dtype=torch.bool)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input": inputs["input"].double()}, "argument 'input': expected float32 or bfloat16 or float16"),
        ({"input": inputs["input"][0]}, "argument 'input'"),
        ({"weight": inputs["weight"].bfloat16()}, "argument 'weight': expected float32"),
        ({"weight": inputs["weight"][:, 1:]}, "argument 'weight'"),
        ({"weight": inputs["weight"][0]}, "argument 'weight'"),
        ({"offsets": offsets.long()}, "argument 'offsets': expected int32"),
        ({"offsets": offsets[:0]}, "argument 'offsets': expected at least one offset"),
        ({"offsets": offsets + 1}, "argument 'offsets': expected offsets that start at 0"),
        ({"offsets": offsets.flip(0) * 0 + offsets * 2}, "argument 'offsets': expected offsets that end at 14"),
        ({"offsets": offsets[[0, 2, 1, 3, 4]].contiguous()}, "argument 'offsets': expected offsets that never descend"),
        ({"head_mask": inputs["head_mask"].float()}, r"argument 'head_mask': expected bool \[batch, heads\]"),
        ({"head_mask": inputs["head_mask"][:3]}, r"argument 'head_mask': expected bool \[batch, heads\] = \[4, 3\]"),
        ({"head_mask": other_mask}, "argument 'weight': expected features in equal blocks"),
        ({"head_mask": other_mask[:, :0]}, "argument 'head_mask': expected at least one head"),
        ({"bias": inputs["bias"][1:]}, "argument 'bias'"),
        ({"bias": inputs["bias"].half()}, "argument 'bias': expected float32"),
        ({"weight": torch.zeros(100, dtype=torch.uint8)}, "argument 'weight'"),
        ({"weight": torch.zeros(9, 1, dtype=torch.uint8)}, "argument 'weight'"),
        ({"weight": torch.full((144, 900), 255, dtype=torch.uint8), "head_mask": None}, "argument 'weight'"),
        ({"weight": packed(inputs["weight"].bfloat16(), direction, 3)}, "argument 'weight': expected one packed to"),
        ({"weight": packed(inputs["weight"], direction, 3)[:, :-1]}, "argument 'weight': expected one packed to"),
        ({"weight": packed(inputs["weight"], direction, 1)}, "argument 'weight': expected one packed to"),
        ({"weight": packed(inputs["weight"].T, OTHER[direction], 3, 1)}, "argument 'weight'"),
    ]  # fmt: skip
    if direction == "project":
        cases += [
            ({"parts": 0}, "argument 'parts': expected at least 1"),
            ({"parts": 7}, "argument 'weight': expected features in equal blocks for 7 parts"),
            ({"heads": 4}, "argument 'heads': expected 3, as in 'head_mask', got 4"),
            ({"head_mask": None, "heads": 0}, "expected at least one head"),
            ({"index": torch.tensor([0, 99])}, r"argument 'index': expected row numbers in \[0, 14\)"),
            ({"index": torch.tensor([0.0])}, "argument 'index': expected int32 or int64"),
        ]
    else:
        cases += [
            ({"residual": inputs["residual"][:3]}, "argument 'residual'"),
        ]
    for change, message in cases:
        with pytest.raises(RuntimeError, match=message):
            function(**inputs | change)


def test_bad_weights_to_pack_are_named() -> None:
    weight = torch.zeros(12, 8)
    for arguments, message in (
        ((weight, "sideways", 3), "argument 'direction': expected project or reduce"),
        ((weight, "project", 5), "argument 'weight': expected features in equal blocks"),
        ((weight, "project", 0), "expected at least one head"),
        ((weight, "reduce", 2, 2), "argument 'parts': expected 1"),
        ((weight.double(), "project", 3), "argument 'weight': expected float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pack_head_masked_weight(*arguments)


def test_a_weight_packed_at_another_level_is_refused() -> None:
    levels = torch.ops.vleff.cpu_isa_levels()
    before = torch.ops.vleff.cpu_isa()
    inputs = make_inputs("project", [5, 4, 2, 3])
    try:
        torch.ops.vleff.set_cpu_isa(levels[0])
        inputs["weight"] = pack_head_masked_weight(inputs["weight"], "project", 3, 3)
        DIRECTIONS["project"][0](**inputs)
        for level in levels[1:]:
            torch.ops.vleff.set_cpu_isa(level)
            with pytest.raises(RuntimeError, match=f"at instruction-set level {level}"):
                DIRECTIONS["project"][0](**inputs)
    finally:
        torch.ops.vleff.set_cpu_isa(before)
