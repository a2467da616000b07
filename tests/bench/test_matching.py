import pytest
import torch
import transformers
from torch import Tensor

from vleff.bench.engines import HiddenStates, dense
from vleff.bench.inputs import Batch, text_samples
from vleff.bench.matching import Match, match, reference_outputs

LENGTHS = [9, 4, 7]


@pytest.fixture
def model() -> transformers.BertModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return transformers.BertModel(config).eval()


@pytest.fixture
def batches() -> list[Batch]:
    return text_samples([list(range(5, 5 + n)) for n in LENGTHS], "numbers", padding=0).batches(3, at_least=3)


def outputs(model: transformers.BertModel, batches: list[Batch]) -> list[HiddenStates]:
    return [dense(model, {})(batch.inputs) for batch in batches]


@pytest.fixture
def references(model: transformers.BertModel, batches: list[Batch]) -> dict[int, HiddenStates]:
    return reference_outputs(model, batches, count=2)


def compare(model, batches, references, change: Tensor) -> Match:
    expected = outputs(model, batches)
    return match(batches, expected, [(expected[0][0] + change,)], references, torch.float32)


def test_references_are_the_first_samples_without_padding(references: dict[int, HiddenStates]) -> None:
    assert {number: tuple(value.shape) for number, (value,) in references.items()} == {0: (9, 32), 1: (4, 32)}
    assert all(value.dtype == torch.float64 for (value,) in references.values())


def test_dense_matches_itself(model, batches, references) -> None:
    assert compare(model, batches, references, torch.zeros(3, 9, 32)) == Match(True, 0.0, 1.0)


def test_what_is_at_padded_positions_does_not_matter(model, batches, references) -> None:
    change = torch.zeros(3, 9, 32)
    change[1, 4:] = torch.nan
    assert compare(model, batches, references, change).ok


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_small_error_anywhere_is_found(model, batches, references, row: int) -> None:
    change = torch.zeros(3, 9, 32)
    change[row, 2, 5] = 1e-4
    result = compare(model, batches, references, change)
    assert not result.ok
    assert result.difference > 2e-6


def test_not_a_number_never_matches(model, batches, references) -> None:
    change = torch.zeros(3, 9, 32)
    change[2, 0, 0] = torch.nan
    assert not compare(model, batches, references, change).ok


def test_bfloat16_may_have_twice_the_error_of_dense(model, batches) -> None:
    model = model.to(torch.bfloat16)
    references = reference_outputs(model, batches)
    expected = outputs(model, batches)
    exact = torch.nn.utils.rnn.pad_sequence([references[i][0] for i in range(3)], batch_first=True)
    assert match(batches, expected, [(exact,)], references, torch.bfloat16).error_ratio == 0
    for factor, ok in ((1.9, True), (2.1, False)):
        changed = exact + factor * (expected[0][0].double() - exact)
        assert match(batches, expected, [(changed,)], references, torch.bfloat16).ok is ok


def test_other_samples_are_refused(model, batches) -> None:
    expected = outputs(model, batches)
    with pytest.raises(ValueError, match="none of the samples"):
        match(batches, expected, expected, {77: (expected[0][0][0].double(),)}, torch.float32)


def test_another_shape_never_matches(model, batches, references) -> None:
    expected = outputs(model, batches)
    shorter = [(states[:, :-1],) for (states,) in expected]
    assert not match(batches, expected, shorter, references, torch.float32).ok


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_in_either_of_two_streams_is_found(which: int) -> None:
    states = (torch.randn(2, 3, 8), 100 * torch.randn(2, 5, 8))
    valid = tuple(torch.ones(2, length, dtype=torch.bool) for length in (3, 5))
    pair = Batch({}, valid, [0, 1])
    references = {0: tuple(one[0].double() + 1e-9 for one in states)}
    changed = [one.clone() for one in states]
    changed[which][1, 2, 4] += 1e-3 * (1, 100)[which]
    assert match([pair], [states], [states], references, torch.float32).ok
    assert not match([pair], [states], [tuple(changed)], references, torch.float32).ok


def test_shuffled_tokens_are_compared_with_their_nearest() -> None:
    states = torch.randn(1, 9, 8)
    valid = torch.ones(1, 9, dtype=torch.bool)
    valid[0, 2] = False  # padded text before the image
    shuffled = states[:, [0, 1, 2, 3, 8, 5, 4, 7, 6]].clone()
    shuffled[0, 2] = 0
    references = {0: (states[0, valid[0]].double() + 1e-9,)}

    def result(got: Tensor, in_order: int | None) -> Match:
        batch = Batch({}, (valid,), [0], in_order)
        return match([batch], [(states,)], [(got,)], references, torch.float32)

    assert result(shuffled, 4).ok
    assert not result(shuffled, None).ok
    assert not result(shuffled, 5).ok  # token 4 is out of its place
    doubled = shuffled.clone()
    doubled[0, 4] = doubled[0, 5]  # one token is there twice, another is missing
    assert not result(doubled, 4).ok
