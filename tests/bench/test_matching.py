import pytest
import torch
import transformers
from torch import Tensor

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


def outputs(model: transformers.BertModel, batches: list[Batch]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(**batch.inputs).last_hidden_state for batch in batches]


@pytest.fixture
def references(model: transformers.BertModel, batches: list[Batch]) -> dict[int, Tensor]:
    return reference_outputs(model, batches, count=2)


def compare(model, batches, references, change: Tensor) -> Match:
    dense = outputs(model, batches)
    return match(batches, dense, [dense[0] + change], references, torch.float32)


def test_references_are_the_first_samples_without_padding(references: dict[int, Tensor]) -> None:
    assert {number: tuple(value.shape) for number, value in references.items()} == {0: (9, 32), 1: (4, 32)}
    assert all(value.dtype == torch.float64 for value in references.values())


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
    dense = outputs(model, batches)
    exact = [torch.nn.utils.rnn.pad_sequence([references[i] for i in range(3)], batch_first=True)]
    assert match(batches, dense, exact, references, torch.bfloat16).error_ratio == 0
    for factor, ok in ((1.9, True), (2.1, False)):
        changed = [exact[0] + factor * (dense[0].double() - exact[0])]
        assert match(batches, dense, changed, references, torch.bfloat16).ok is ok


def test_other_samples_are_refused(model, batches) -> None:
    dense = outputs(model, batches)
    with pytest.raises(ValueError, match="none of the samples"):
        match(batches, dense, dense, {77: dense[0][0].double()}, torch.float32)
