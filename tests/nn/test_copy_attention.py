"""CopyAttention against the formula in float64, made of probabilities and sample by sample."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import assert_same_bits, offsets_of
from torch import Tensor, nn

import vleff
from vleff.nn import CopyAttention
from vleff.ops import CopyMemory

WORDS, EXTENDED = 20, 26

# Name -> width, width of the memories, and of each sample the numbers of targets, question and paragraph positions.
SHAPES: dict[str, tuple[int, int | None, list[tuple[int, int, int]]]] = {
    "one of each": (1, None, [(1, 1, 1)]),
    "memories of another width": (17, 5, [(5, 8, 30), (3, 17, 16)]),
    "empty memories and samples": (16, 24, [(4, 0, 9), (3, 6, 0), (2, 0, 0), (0, 3, 4)]),
    "40 targets": (40, None, [(40, 5, 33), (1, 2, 3)]),
}


class Case:
    """A module, what a decoder made, what can be copied, and targets, a quarter of which cannot be generated."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, coverage: bool = False) -> None:
        width, memory_width, lengths = SHAPES[name]

        def ragged(part: int, columns: int) -> vleff.RaggedBatch:
            of_samples = [sample[part] for sample in lengths]
            values = torch.randn(sum(of_samples), columns, dtype=dtype)
            return vleff.RaggedBatch(values, offsets_of(of_samples), max(of_samples))

        self.module = CopyAttention(width, WORDS, memory_width=memory_width, coverage=coverage, dtype=dtype)
        self.decoded = ragged(0, width)
        self.sources = [ragged(part, memory_width or width) for part in (1, 2)]
        self.ids = [torch.randint(EXTENDED, source.values.shape[:1], dtype=torch.int32) for source in self.sources]
        self.targets = torch.randint(EXTENDED, self.decoded.values.shape[:1])

    def leaves(self) -> list[Tensor]:
        """What `log_probs` are functions of."""
        inputs = [batch.values for batch in (self.decoded, *self.sources)]
        return [x.requires_grad_() for x in (*inputs, *self.module.parameters())]

    def memories(self) -> tuple[CopyMemory, CopyMemory]:
        return self.module.memories(self.sources[0], self.ids[0], self.sources[1], self.ids[1])

    def log_probs(self) -> Tensor:
        return self.module(self.decoded, self.memories(), self.targets)[0]

    def rows(self) -> Tensor:
        return self.module.rows(self.decoded, self.memories(), EXTENDED)

    def in_double(self) -> "Case":
        exact = copy.deepcopy(self)
        exact.module.double()
        exact.decoded, *exact.sources = (
            replace(batch, values=batch.values.double()) for batch in (self.decoded, *self.sources)
        )
        return exact


def rows_of(batch: vleff.RaggedBatch, sample: int) -> slice:
    return slice(*batch.offsets[sample : sample + 2].tolist())


def formula(case: Case) -> tuple[Tensor, Tensor]:
    """Probabilities [targets, extended words] and the coverage loss [targets]."""
    module, probabilities, losses = case.module, [], []
    projections = module.question_key, module.paragraph_key
    for sample in range(len(case.decoded.offsets) - 1):
        decoded = case.decoded.values[rows_of(case.decoded, sample)]
        places = [rows_of(source, sample) for source in case.sources]
        closed = torch.tensor([False, *(place.start == place.stop for place in places)])
        gate = module.gate(decoded).masked_fill(closed, -torch.inf).softmax(1)
        generated = gate[:, :1] * module.vocabulary(decoded).softmax(1)
        rows = nn.functional.pad(generated, (0, EXTENDED - WORDS))
        loss = rows.new_zeros(len(rows))
        for number, place in enumerate(places):
            keys = projections[number](case.sources[number].values[place])
            attention = (module.query(decoded) @ keys.T * keys.shape[1] ** -0.5).softmax(1)
            copied = gate[:, number + 1, None] * attention
            rows = rows.index_add(1, case.ids[number][place], copied)
            covered = attention.cumsum(0) - attention
            loss = loss + torch.minimum(attention, covered).sum(1)
        probabilities.append(rows)
        losses.append(loss)
    return torch.cat(probabilities), torch.cat(losses)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_log_probs_and_coverage_are_those_of_the_formula(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype, coverage=True)
    probabilities, expected_loss = formula(case.in_double())
    log_probs, coverage_loss = case.module(case.decoded, case.memories(), case.targets)
    assert log_probs.dtype == coverage_loss.dtype == torch.float32
    expected = probabilities.gather(1, case.targets[:, None]).squeeze(1).log()
    torch.testing.assert_close(log_probs.double(), expected, **tolerance(dtype))
    torch.testing.assert_close(coverage_loss.double(), expected_loss, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_rows_are_the_probabilities_of_all_words(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    rows = case.rows()
    assert rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(rows.double(), formula(case.in_double())[0].log(), **tolerance(dtype))


@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_inputs_and_parameters(cpu_isa: str, name: str, coverage: bool) -> None:
    case = Case(name, coverage=coverage)
    exact = case.in_double()
    exact_leaves = exact.leaves()
    probabilities, exact_loss = formula(exact)
    expected = probabilities.gather(1, case.targets[:, None]).squeeze(1)
    possible = expected > 0
    leaves = case.leaves()
    log_probs, coverage_loss = case.module(case.decoded, case.memories(), case.targets)
    assert (coverage_loss is not None) == coverage
    assert possible.any() and bool((possible == (log_probs > -torch.inf)).all())
    total, exact_total = -log_probs[possible].sum(), -expected[possible].log().sum()
    if coverage_loss is not None:
        total, exact_total = total + 0.3 * coverage_loss.sum(), exact_total + 0.3 * exact_loss.sum()
    actual = torch.autograd.grad(total, leaves)
    for gradient, reference in zip(actual, torch.autograd.grad(exact_total, exact_leaves), strict=True):
        torch.testing.assert_close(gradient.double(), reference, atol=1e-4, rtol=1e-4)


def test_coverage_is_left_out_unless_the_module_was_made_for_it() -> None:
    case = Case("40 targets")
    assert case.module(case.decoded, case.memories(), case.targets)[1] is None
    assert "coverage=False" in repr(case.module)


def test_samples_may_go_on_with_fewer_beams_and_the_same_memories() -> None:
    case = Case("memories of another width")
    memories, rows = case.memories(), case.rows()
    kept = [0, 4, 6]
    fewer = vleff.RaggedBatch(case.decoded.values[kept], offsets_of([2, 1]), 2)
    torch.testing.assert_close(case.module.rows(fewer, memories, EXTENDED), rows[kept])


def test_state_is_that_of_its_linear_layers() -> None:
    case = Case("memories of another width")
    state = case.module.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "query.weight": (17, 17),
        "question_key.weight": (17, 5),
        "paragraph_key.weight": (17, 5),
        "gate.weight": (3, 17),
        "gate.bias": (3,),
        "vocabulary.weight": (WORDS, 17),
        "vocabulary.bias": (WORDS,),
    }
    expected = case.log_probs()
    case.module = CopyAttention(17, WORDS, memory_width=5)
    assert not torch.equal(case.log_probs(), expected)
    case.module.load_state_dict(state)
    assert_same_bits(case.log_probs(), expected)


def test_the_vocabulary_may_be_an_embedding() -> None:
    case = Case("40 targets")
    embedding = nn.Embedding(WORDS, 40)
    case.module.vocabulary.weight = embedding.weight
    case.log_probs()[case.targets < WORDS].sum().backward()
    assert embedding.weight.grad is not None and (embedding.weight.grad != 0).any()


@pytest.mark.parametrize(
    "argument, change",
    [
        ("targets", lambda case: {"targets": case.targets[1:]}),
        ("targets", lambda case: {"targets": case.targets - EXTENDED}),
        ("question_ids", lambda case: {"ids": [case.ids[0].long(), case.ids[1]]}),
        ("paragraph_ids", lambda case: {"ids": [case.ids[0], case.ids[1][1:]]}),
        ("query_offsets", lambda case: {"decoded": replace(case.decoded, offsets=offsets_of([4, 5]))}),
        (
            "paragraph_offsets",
            lambda case: {"sources": [case.sources[0], replace(case.sources[1], offsets=offsets_of([46]))]},
        ),
        ("max_question", lambda case: {"sources": [replace(case.sources[0], max_length=16), case.sources[1]]}),
    ],
)
def test_bad_input_is_named(argument: str, change: Callable[[Case], dict[str, Any]]) -> None:
    case = Case("memories of another width")
    vars(case).update(change(case))
    with pytest.raises(RuntimeError, match=rf"argument '{argument}': expected .+, got .+"):
        case.log_probs()


def test_ids_beyond_the_extended_vocabulary_are_refused_in_rows() -> None:
    case = Case("memories of another width")
    case.ids[1][3] = EXTENDED
    with pytest.raises(RuntimeError, match=r"argument 'paragraph_ids': expected words in \[0, 26\), got 26"):
        case.rows()
