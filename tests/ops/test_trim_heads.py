"""trim_heads against its reference in fp64, at every instruction-set level."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trim_cases import cast, head_arguments

from vleff.ops import trim_heads, trim_heads_reference

SIZES = [(3, 64, 0, 8, 4), (1, 40, 24, 5, 3), (17, 1536, 768, 96, 12), (0, 16, 0, 4, 2), (5, 17, 9, 33, 40)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matches_the_reference(cpu_isa, sizes, dtype):
    arguments = cast(head_arguments(*sizes), dtype)
    kept, logits = trim_heads(**arguments)
    exact = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    expected_kept, expected = trim_heads_reference(**exact)
    torch.testing.assert_close(logits.double(), expected, atol=2e-5, rtol=1e-5)
    assert kept.dtype == torch.bool and kept.shape == expected.shape
    near = (expected - arguments["threshold"]).abs() < 1e-4
    assert torch.equal(kept | near, expected_kept | near)


def test_the_highest_head_stays():
    arguments = cast(head_arguments(6, 32, 0, 4, 5), torch.float32) | {"threshold": 1e6}
    kept, logits = trim_heads(**arguments)
    assert torch.equal(kept, torch.nn.functional.one_hot(logits.argmax(1), 5).bool())
    arguments["score_weight"] = torch.zeros(5, 4)
    arguments["score_bias"] = torch.zeros(5)
    assert trim_heads(**arguments)[0].tolist() == [[True, False, False, False, False]] * 6


def test_a_sample_depends_on_itself_and_not_on_threads(cpu_isa, with_threads):
    arguments = cast(head_arguments(9, 64, 40, 8, 4), torch.float32)
    together = with_threads(2, lambda: trim_heads(**arguments))
    one = with_threads(1, lambda: trim_heads(**arguments))
    assert all(torch.equal(a, b) for a, b in zip(together, one, strict=True))
    for sample in range(9):
        rows = slice(sample, sample + 1)
        alone = {name: arguments[name][rows] for name in ("pooled", "memory_pooled")}
        assert torch.equal(trim_heads(**arguments | alone)[1][0], together[1][sample])


@pytest.mark.parametrize(
    "name, value",
    [
        ("pooled", torch.zeros(3, 16, dtype=torch.float64)),
        ("memory_pooled", torch.zeros(2, 8)),
        ("hidden_weight", torch.zeros(4, 23)),
        ("hidden_bias", torch.zeros(5)),
        ("score_weight", torch.zeros(4, 5)),
        ("score_bias", torch.zeros(1)),
        ("threshold", float("inf")),
    ],
)
def test_bad_arguments(name, value):
    arguments = cast(head_arguments(3, 16, 8, 4, 2), torch.float32)
    with pytest.raises(RuntimeError, match=name):
        trim_heads(**arguments | {name: value})


def test_opcheck_and_flops():
    arguments = cast(head_arguments(3, 16, 8, 4, 2), torch.float32)
    torch.library.opcheck(torch.ops.vleff.trim_heads.default, tuple(arguments.values()))
    with FlopCounterMode(display=False) as counter:
        trim_heads(**arguments)
    assert counter.get_total_flops() == 2 * 3 * 4 * (24 + 2)
