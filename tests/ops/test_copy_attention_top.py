"""copy_attention_top against its reference in float64 and against copy_attention_rows, at every level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import DTYPES, Inputs, assert_same_bits, error, offsets_of
from copy_cases import EXTENDED, NOTHING, SHAPES, WORDS, in_dtype, make_inputs
from fake_cuda import fake_cuda
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import (
    copy_attention_rows,
    copy_attention_rows_reference,
    copy_attention_top,
    copy_attention_top_reference,
    top_words,
)
from vleff.ops.copy_attention_top import copy_attention_top_by_rows

pytestmark = pytest.mark.usefixtures("poisoned_memory")
HIDDEN = 24
LENGTHS = [(3, 4, 9), (5, 2, 12)]


def top_inputs(dtype: torch.dtype = torch.float32, words: int = WORDS, bias: bool = True, **options: Any) -> Inputs:
    """Words of both memories below the extended size, half of them such as the decoder generates."""
    inputs = make_inputs(dtype=dtype, **options)
    rows, extended = len(inputs["queries"]), words + EXTENDED - WORDS
    for memory in ("question", "paragraph"):
        count = len(inputs[memory].ids)
        inputs[memory] = inputs[memory]._replace(ids=torch.randint(extended, (count,), dtype=torch.int32))
    return {
        **{name: x for name, x in inputs.items() if name not in ("targets", "generate_log_probs")},
        "hidden": torch.randn(rows, HIDDEN).to(dtype),
        "weight": (torch.randn(words, HIDDEN) * 0.5).to(dtype),
        "bias": torch.randn(words).to(dtype) if bias else None,
        "extended_size": extended,
        "count": 7,
        "watched": words // 2,
    }


def by_rows(**inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What runs on CUDA, on the device of the inputs."""
    flat = [part for x in inputs.values() for part in (x if isinstance(x, tuple) else (x,))]
    return copy_attention_top_by_rows(*flat, scale=inputs["queries"].shape[-1] ** -0.5)


def in_double(inputs: Inputs) -> Inputs:
    doubled = in_dtype(inputs | {"generate_log_probs": torch.zeros(1)}, torch.float64)
    del doubled["generate_log_probs"]
    names = [name for name in ("hidden", "weight", "bias") if inputs[name] is not None]
    return doubled | {name: inputs[name].double() for name in names}


def all_rows(inputs: Inputs, function: Callable[..., Tensor]) -> Tensor:
    """Log-probabilities of all words, as `function` makes them of logits."""
    logits = torch.nn.functional.linear(*(inputs[name] for name in ("hidden", "weight", "bias")))
    own = ("hidden", "weight", "bias", "count", "watched")
    return function(**{name: x for name, x in inputs.items() if name not in own}, vocabulary_logits=logits)


def assert_accurate(inputs: Inputs, function: Callable[..., Any] = copy_attention_top) -> None:
    """Values are those of the reference; where values of different words are about equal, either word may stand."""
    found, expected = function(**inputs), copy_attention_top_reference(**in_double(inputs))
    by_word = all_rows(in_double(inputs), copy_attention_rows_reference)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[inputs["queries"].dtype]
    log_probs, of_words, watched = found
    assert (log_probs.dtype, of_words.dtype, watched.dtype) == (torch.float32, torch.int64, torch.float32)
    finite = torch.cat([x[x > -torch.inf].flatten().abs() for x in (log_probs, watched)])
    largest = max([1.0, *finite.tolist()])
    assert error(log_probs, expected[0]) <= tolerance * largest
    assert error(watched, expected[2]) <= tolerance * largest
    is_there = log_probs > -torch.inf
    assert torch.equal(is_there, expected[0] > -torch.inf) and (of_words[~is_there] == 0).all()
    exact = by_word.gather(1, of_words)[is_there]
    assert len(exact) == 0 or (exact - log_probs[is_there]).abs().max() <= tolerance * largest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*SHAPES, *NOTHING])
def test_values_are_those_of_the_reference(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    shape = (SHAPES | NOTHING)[name]
    assert_accurate(top_inputs(dtype, **shape))
    assert_accurate(top_inputs(dtype, words=307, bias=False, **shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*SHAPES, *NOTHING])
def test_by_rows_values_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    shape = (SHAPES | NOTHING)[name]
    for inputs in (top_inputs(dtype, **shape), top_inputs(dtype, words=307, bias=False, **shape) | {"count": 350}):
        assert_accurate(inputs, by_rows)
        for found, one in zip(by_rows(**inputs), copy_attention_top(**inputs), strict=True):
            assert (found.shape, found.dtype) == (one.shape, one.dtype) and found.is_contiguous()


def test_by_rows_no_value_is_read_on_cuda() -> None:
    for dtype in DTYPES:
        inputs = top_inputs(dtype, lengths=LENGTHS)
        real = copy_attention_top(**inputs)
        with fake_cuda(allow_non_fake_inputs=True):
            there = _pytree.tree_map_only(Tensor, lambda x: x.to("cuda"), inputs)
            found = by_rows(**there)
        for fake, one in zip(found, real, strict=True):
            assert (fake.shape, fake.dtype, fake.device.type) == (one.shape, one.dtype, "cuda")


@given(
    words=st.sampled_from([1, 5, 119, 120, 121, 500]),
    count=st.integers(0, 30),
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 20)), min_size=1, max_size=5),
)
def test_any_shape(cpu_isa: str, words: int, count: int, lengths: list[tuple[int, int, int]]) -> None:
    assert_accurate(top_inputs(words=words, lengths=lengths) | {"count": count, "watched": words - 1})


def test_more_rows_than_a_chunk_has(cpu_isa: str) -> None:
    assert_accurate(top_inputs(words=300, lengths=[(200, 3, 5), (70, 2, 9)]))


def test_they_are_the_likeliest_rows(cpu_isa: str) -> None:
    inputs = top_inputs(words=1003, lengths=LENGTHS, width=40)
    rows = all_rows(inputs, copy_attention_rows)
    log_probs, words, watched = copy_attention_top(**inputs)
    torch.testing.assert_close(log_probs, top_words(rows, 7)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(watched, rows[:, inputs["watched"]], atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.gather(1, words), log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("function", [copy_attention_top, by_rows])
def test_of_equal_words_the_first_are_taken(cpu_isa: str, function: Callable[..., Any]) -> None:
    inputs = top_inputs(words=400, lengths=[(9, 0, 0)])
    inputs["weight"][:] = inputs["weight"][0].clone()
    inputs["bias"][:] = 0
    inputs["bias"][[7, 390]] = 1
    _, words, _ = function(**inputs)
    assert words.tolist() == [[7, 390, 0, 1, 2, 3, 4]] * 9


def test_a_copied_word_rises(cpu_isa: str) -> None:
    """It need not be among those with the largest logits."""
    inputs = top_inputs(words=400, lengths=[(1, 2, 1)])
    inputs["question"] = inputs["question"]._replace(ids=torch.tensor([399, 403], dtype=torch.int32))
    inputs["paragraph"] = inputs["paragraph"]._replace(ids=torch.tensor([399], dtype=torch.int32))
    inputs["bias"][399] = -20
    inputs["gate_logits"] = torch.tensor([[0.0, 1.0, 3.0]])
    assert_accurate(inputs)
    assert copy_attention_top(**inputs)[1][0, 0] == 399


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_mates_and_threads_change_no_bit(cpu_isa: str, with_threads: Callable, dtype: torch.dtype) -> None:
    lengths = [(5, 4, 9), (0, 1, 3), (3, 2, 30), (4, 0, 7), (6, 3, 0)]
    inputs = top_inputs(dtype, words=900, lengths=lengths)
    one = with_threads(1, copy_attention_top, *inputs.values())
    for threads in (2, 3, 7):
        for found, expected in zip(with_threads(threads, copy_attention_top, *inputs.values()), one, strict=True):
            assert torch.equal(found, expected)
    ends = inputs["query_offsets"].tolist()
    for sample in range(5):
        rows = slice(ends[sample], ends[sample + 1])
        alone = inputs | {name: inputs[name][rows] for name in ("queries", "gate_logits", "hidden")}
        alone["query_offsets"] = offsets_of([rows.stop - rows.start])
        for name in ("question", "paragraph"):
            memory = inputs[name]
            places = slice(*memory.offsets[sample : sample + 2].tolist())
            count = places.stop - places.start
            alone[name] = memory._replace(keys=memory.keys[places], ids=memory.ids[places], offsets=offsets_of([count]))
        for found, expected in zip(copy_attention_top(**alone), one, strict=True):
            assert torch.equal(found, expected[rows])
    wider = copy_attention_top(**inputs | {"extended_size": inputs["extended_size"] + 50})
    assert all(torch.equal(found, expected) for found, expected in zip(wider, one, strict=True))


def test_strides_change_nothing() -> None:
    inputs = top_inputs(lengths=LENGTHS)
    names = ("queries", "gate_logits", "hidden", "weight", "bias")
    strided = inputs | {name: inputs[name].repeat_interleave(2, -1)[..., ::2] for name in names}
    assert_same_bits(copy_attention_top(**strided)[0], copy_attention_top(**inputs)[0])


def test_inside_torch() -> None:
    inputs = top_inputs(torch.bfloat16, lengths=LENGTHS)
    flat = [*_pytree.tree_flatten(list(inputs.values()))[0]]
    torch.library.opcheck(torch.ops.vleff.copy_attention_top.default, tuple(flat), {"scale": 1.0})
    with FakeTensorMode() as mode:
        fake = copy_attention_top(**_pytree.tree_map_only(Tensor, mode.from_tensor, inputs))
    for found, real in zip(fake, copy_attention_top(**inputs), strict=True):
        assert (found.shape, found.dtype) == (real.shape, real.dtype)
    with FlopCounterMode(display=False) as counter:
        copy_attention_top(**inputs)
    assert counter.get_total_flops() == 2 * 8 * WORDS * HIDDEN
    leaf = inputs | {"hidden": inputs["hidden"].requires_grad_()}
    assert not copy_attention_top(**leaf)[0].requires_grad


WRONG = [
    ("queries", torch.zeros(8, 16).double()),
    ("gate_logits", torch.zeros(8, 2)),
    ("hidden", torch.zeros(7, HIDDEN)),
    ("hidden", torch.zeros(8, 0)),
    ("hidden", torch.zeros(8, HIDDEN).half()),
    ("weight", torch.zeros(WORDS, HIDDEN + 1)),
    ("weight", torch.zeros(0, HIDDEN)),
    ("bias", torch.zeros(WORDS + 1)),
    ("count", -1),
    ("watched", -1),
    ("watched", WORDS),
]
FOUND_BY_ROWS = [
    ("query_offsets", torch.tensor([0, 3, 9]).int()),
    ("max_queries", 2),
    ("extended_size", WORDS - 1),
    ("extended_size", 2**31),
]


@pytest.mark.parametrize(("argument", "wrong"), WRONG)
def test_by_rows_bad_argument(argument: str, wrong: Any) -> None:
    inputs = top_inputs(lengths=LENGTHS)
    with pytest.raises(RuntimeError, match=rf"copy_attention_top: argument '{argument}': expected .+, got .+"):
        by_rows(**inputs | {argument: wrong})


@pytest.mark.parametrize(("argument", "wrong"), FOUND_BY_ROWS)
def test_by_rows_what_the_rows_find(argument: str, wrong: Any) -> None:
    inputs = top_inputs(lengths=LENGTHS)
    inputs |= {name: inputs[name]._replace(ids=inputs[name].ids % 2) for name in ("question", "paragraph")}
    with pytest.raises(RuntimeError, match=rf"copy_attention_rows: argument '{argument}': expected .+, got .+"):
        by_rows(**inputs | {argument: wrong})


@pytest.mark.parametrize(("argument", "wrong"), [*WRONG, *FOUND_BY_ROWS])
def test_bad_argument(argument: str, wrong: Any) -> None:
    inputs = top_inputs(lengths=LENGTHS)
    ids = {name: inputs[name]._replace(ids=torch.zeros_like(inputs[name].ids)) for name in ("question", "paragraph")}
    with pytest.raises(RuntimeError, match=rf"copy_attention_top: argument '{argument}': expected .+, got .+"):
        copy_attention_top(**inputs | ids | {argument: wrong})


def test_bad_memory() -> None:
    inputs = top_inputs(lengths=LENGTHS)
    wrong = inputs["paragraph"]._replace(ids=torch.full_like(inputs["paragraph"].ids, inputs["extended_size"]))
    with pytest.raises(RuntimeError, match="copy_attention_top: argument 'paragraph_ids': expected words in"):
        copy_attention_top(**inputs | {"paragraph": wrong})
