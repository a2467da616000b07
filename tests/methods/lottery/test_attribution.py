"""Attention attribution against the formula, written out for a model of its own."""

from pathlib import Path

import pytest
import torch
import transformers
from methods.lottery.families import FAMILIES, bert, inputs_of

import vleff
from vleff.lottery import (
    HeadScores,
    attention_attribution,
    class_probability,
    sequence_probability,
    span_probability,
)


def qa_batch(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    gold = {"start_positions": torch.tensor([3, 1, 5]), "end_positions": torch.tensor([4, 7, 5])}
    return inputs_of(model) | gold


def by_the_formula(
    model: transformers.PreTrainedModel, batch: dict[str, torch.Tensor], layer: int, steps: int
) -> torch.Tensor:
    """The scores of one layer of BERT in float64: every example and step alone, the encoder written out."""
    model = model.double()
    encoder, heads = model.bert.encoder, model.config.num_attention_heads

    def probability(example: int, replacement: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        length = int(batch["attention_mask"][example].sum())
        x = model.bert.embeddings(batch["input_ids"][example : example + 1, :length])[0]
        attention = None
        for number, block in enumerate(encoder.layer):
            own = block.attention.self
            q, k, v = (f(x).view(length, heads, -1).transpose(0, 1) for f in (own.query, own.key, own.value))
            a = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            if number == layer:
                attention = a.detach()
                a = attention if replacement is None else replacement
            x = block.attention.output((a @ v).transpose(0, 1).flatten(1), x)
            x = block.output(block.intermediate(x), x)
        start, end = model.qa_outputs(x).unbind(-1)
        gold = batch["start_positions"][example], batch["end_positions"][example]
        return start.softmax(0)[gold[0]] * end.softmax(0)[gold[1]], attention

    scores = torch.zeros(heads, dtype=torch.float64)
    for example in range(3):
        with torch.no_grad():
            attention = probability(example, None)[1]
        total = torch.zeros_like(attention)
        for i in range(steps):
            leaf = (i / steps * attention).requires_grad_()
            total += torch.autograd.grad(probability(example, leaf)[0], leaf)[0]
        scores += (attention * total / steps).flatten(1).amax(1)
    return scores


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_scores_are_those_of_the_formula(implementation: str) -> None:
    model = bert()
    model.set_attn_implementation(implementation)
    model.train()
    model.qa_outputs.weight.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # attention that is not flat
    batch = qa_batch(model)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    result = attention_attribution(model, [batch], span_probability, steps=5)
    assert model.training and model.config._attn_implementation == implementation
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert result.examples == 3 and result.steps == 5
    for layer, scores in enumerate(result.scores.values()):
        expected = by_the_formula(model.eval(), batch, layer, 5)
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_scores(family: str) -> None:
    model = FAMILIES[family]()
    batch, objective = qa_batch(model), span_probability
    if family == "vilt":
        batch, objective = inputs_of(model) | {"labels": torch.tensor([0, 1, 4])}, class_probability
    if family == "t5":
        batch = inputs_of(model)
        batch["labels"] = batch.pop("decoder_input_ids")
        objective = sequence_probability
    torch.manual_seed(0)  # ViLT draws patches
    scores = attention_attribution(model, [batch, batch], objective, steps=3).scores
    assert len(scores) == (6 if family == "t5" else 2)
    for values in scores.values():
        assert values.shape == (4,) and values.isfinite().all() and (values != 0).all()


def test_padding_changes_no_score() -> None:
    model = bert()
    batch = qa_batch(model)
    cut = {name: value[1:2, :12] if value.dim() == 2 else value[1:2] for name, value in batch.items()}
    whole = {name: value[1:2] for name, value in batch.items()}
    for alone, padded in zip(
        attention_attribution(model, [cut], span_probability, 4).scores.values(),
        attention_attribution(model, [whole], span_probability, 4).scores.values(),
        strict=True,
    ):
        torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-10)


def test_saved_loaded_and_drawn(tmp_path: Path) -> None:
    scores = HeadScores({"a": torch.tensor([0.5, 0.25]), "b": torch.tensor([1.0])}, examples=7, steps=20)
    scores.save(tmp_path / "scores.json")
    loaded = HeadScores.load(tmp_path / "scores.json")
    assert loaded.examples == 7 and loaded.steps == 20
    assert all(torch.equal(loaded.scores[name], values) for name, values in scores.scores.items())
    with pytest.raises(FileExistsError):
        scores.save(tmp_path / "scores.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected head scores of format 1"):
        HeadScores.load(tmp_path / "other.json")
    scores.plot(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input() -> None:
    model = bert()
    batch = qa_batch(model)
    with pytest.raises(ValueError, match="'steps': expected at least 1, got 0"):
        attention_attribution(model, [batch], span_probability, steps=0)
    with pytest.raises(ValueError, match=r"'objective': expected a result \[examples\]"):
        attention_attribution(model, [batch], lambda outputs, _: outputs.start_logits, steps=2)
    with pytest.raises(ValueError, match=r"call vleff\.restore\(model\) first"):
        attention_attribution(vleff.accelerate(model), [batch], span_probability, steps=2)
