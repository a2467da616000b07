"""trim_tokens against its reference in fp64, at every instruction-set level."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trim_cases import LENGTHS, SIZES, cast, offsets_of, token_arguments

from vleff.ops import trim_tokens, trim_tokens_reference
from vleff.ops.trim_tokens import trim_tokens_flops

NAMES = ("survivors", "kept_parts", "pooled", "logits")


def assert_matches(arguments, dtype, tolerance):
    """Compares with the reference in fp64 on the same rounded arguments; near ties may fall either way."""
    rounded = cast(arguments, dtype)
    actual = dict(zip(NAMES, trim_tokens(**rounded), strict=True))
    exact = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in rounded.items()
    }
    expected = dict(zip(NAMES, trim_tokens_reference(**exact), strict=True))
    for name in ("pooled", "logits"):
        scale = max(float(expected[name].abs().max()), 1.0) if expected[name].numel() else 1.0
        torch.testing.assert_close(actual[name].double(), expected[name], atol=tolerance * scale, rtol=0)
    if ((expected["logits"] - arguments["threshold"]).abs() > 2 * tolerance * scale).all():
        assert torch.equal(actual["survivors"], expected["survivors"])
        assert torch.equal(actual["kept_parts"], expected["kept_parts"])


@pytest.mark.parametrize("kind", ["alone", "paired", "other"])
@pytest.mark.parametrize("width, rank", SIZES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_matches_the_reference(cpu_isa, lengths, width, rank, kind):
    if kind == "paired" and len(lengths) % 2:
        lengths = (*lengths, 2)
    assert_matches(token_arguments(lengths, width, rank, kind), torch.float32, 5e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("kind", ["alone", "paired", "other"])
def test_other_dtypes(cpu_isa, dtype, tolerance, kind):
    assert_matches(token_arguments((20, 7, 0, 31), 130, 24, kind), dtype, tolerance)


def test_outliers(cpu_isa):
    assert_matches(token_arguments((20, 7), 768, 96, "paired", outliers=True), torch.float32, 2e-5)


def test_first_and_pinned_tokens_stay():
    arguments = cast(token_arguments((4, 0, 6), 32, 4), torch.float32)
    pinned = torch.zeros(10, dtype=torch.bool)
    pinned[[2, 9]] = True
    survivors, kept_parts, _, logits = trim_tokens(**arguments | {"threshold": 1e6}, pinned=pinned)
    assert survivors.tolist() == [0, 2, 4, 9] and kept_parts.tolist() == [0, 2, 2, 4]
    survivors, _, _, _ = trim_tokens(**arguments | {"threshold": -1e6})
    assert survivors.tolist() == list(range(10)) and logits.shape == (10,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_does_not_depend_on_others(cpu_isa, dtype):
    lengths = (31, 5, 77, 2)
    arguments = cast(token_arguments(lengths, 96, 12, "other"), dtype)
    together = trim_tokens(**arguments)
    bounds = offsets_of(lengths).tolist()
    for part in range(4):
        rows = slice(bounds[part], bounds[part + 1])
        alone = arguments | {
            "values": arguments["values"][rows],
            "parts": torch.tensor([0, lengths[part]], dtype=torch.int32),
            "other": arguments["other"][part : part + 1],
        }
        survivors, _, pooled, logits = trim_tokens(**alone)
        assert torch.equal(logits, together[3][rows]) and torch.equal(pooled[0], together[2][part])
        kept = together[0][together[1][part] : together[1][part + 1]]
        assert torch.equal(survivors, kept - bounds[part])


def test_the_same_bits_at_any_number_of_threads(cpu_isa, with_threads):
    arguments = cast(token_arguments((200, 3, 90, 41), 64, 8, "paired"), torch.float32)
    one, two, five = (with_threads(threads, lambda: trim_tokens(**arguments)) for threads in (1, 2, 5))
    for first, second, third in zip(one, two, five, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


def test_poisoned_memory(cpu_isa, poisoned_memory):
    assert_matches(token_arguments((9, 30), 50, 7, "paired"), torch.float32, 5e-6)


def test_strided_arguments():
    arguments = cast(token_arguments((9, 30), 64, 8), torch.float32)
    expected = trim_tokens(**arguments)
    spread = dict(arguments)
    for name in ("values", "local_weight", "hidden_weight"):
        spread[name] = torch.stack([arguments[name]] * 2, -1)[..., 0]
    actual = trim_tokens(**spread)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("values", torch.zeros(3, 4, dtype=torch.float64), "values.*float32, bfloat16 or float16"),
        ("values", torch.zeros(3), r"values.*\[tokens, width\]"),
        ("parts", torch.tensor([0, 9], dtype=torch.int32), "parts.*end at 10"),
        ("parts", torch.tensor([0, 7, 5, 10], dtype=torch.int32), "parts.*never descend"),
        ("parts", torch.tensor([0, 10]), "parts.*int32"),
        ("local_weight", torch.zeros(4, 31), r"local_weight.*\[rank, width\] = \[\*, 32\]"),
        ("global_weight", torch.zeros(5, 32), "global_weight"),
        ("hidden_weight", torch.zeros(4, 4), "hidden_weight"),
        ("hidden_bias", torch.zeros(4, dtype=torch.bfloat16), "hidden_bias"),
        ("score_weight", torch.zeros(4), "score_weight"),
        ("score_bias", torch.zeros(()), "score_bias"),
        ("other", torch.zeros(1, 32), "other"),
        ("pinned", torch.zeros(9, dtype=torch.bool), "pinned"),
        ("paired", True, "even number of parts"),
        ("threshold", float("nan"), "threshold"),
        ("eps", 0.0, "eps"),
    ],
)
def test_bad_arguments(name, value, message):
    arguments = cast(token_arguments((10,), 32, 4), torch.float32)
    with pytest.raises(RuntimeError, match=message):
        trim_tokens(**arguments | {name: value})


def test_opcheck_and_flops():
    arguments = cast(token_arguments((10, 7), 32, 4, "paired"), torch.float32)
    order = (
        *("values", "parts", "local_weight", "global_weight", "hidden_weight", "hidden_bias", "score_weight"),
        *("score_bias", "other", "other_weight", "temperature", "pinned", "paired", "threshold"),
    )
    given = tuple(arguments.get(name) for name in order)
    torch.library.opcheck(torch.ops.vleff.trim_tokens.default, given)
    with FlopCounterMode(display=False) as counter:
        trim_tokens(**arguments)
    assert counter.get_total_flops() == trim_tokens_flops(17, 2, 32, 4, 32)
