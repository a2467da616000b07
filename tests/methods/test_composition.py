"""The methods compose: trimmers on a model whose linear layers are sparse, and on the towers of a dual encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from methods.dide import small_models
from methods.smarttrim.families import stir
from model_cases import Case, make_case
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import BertForQuestionAnswering, ViltForQuestionAnswering

import vleff
from vleff import lottery, smarttrim
from vleff.dide import DualEncoder
from vleff.nn import MaskedLinear

LOGITS = {BertForQuestionAnswering: "start_logits", ViltForQuestionAnswering: "logits"}


def sparse(model: Any) -> Any:
    """A subnetwork of the model."""
    masks = {name: torch.rand(layer.weight.shape) < 0.3 for name, layer in lottery.prunable_linears(model).items()}
    return lottery.extract(model, masks)


def with_trimmers(model: Any, weights: dict[str, Tensor] | None = None) -> Any:
    smarttrim.attach(model)
    if weights is None:
        stir(model)
    else:
        model.load_state_dict(weights, strict=False)
    return model.eval()


def answers(case: Case, model: nn.Module) -> Tensor:
    """The valid logits of a call."""
    name = LOGITS[type(case.model)]
    logits = getattr(case.call(model), name)
    return torch.where(logits > torch.finfo(logits.dtype).min / 2, logits, 0).float()


@pytest.fixture(params=LOGITS, ids=lambda kind: kind.__name__)
def composed(request: pytest.FixtureRequest) -> tuple[Case, Any, Any]:
    """A sparse model with trimmers, and a dense one with the same weights and trimmers."""
    case = make_case(request.param)
    dense = lottery.to_dense(sparse(case.model))
    both = with_trimmers(case.model)
    own = {name: value.clone() for name, value in smarttrim.trimmer_parameters(both).items()}
    return case, both, with_trimmers(dense, own)


def test_sparse_and_trimmed_answers_like_dense_and_trimmed(composed: tuple[Case, Any, Any]) -> None:
    case, both, dense = composed
    assert any(isinstance(layer, MaskedLinear) for layer in both.modules())
    with smarttrim.recorded(both) as runs:
        actual = answers(case, both)
    with smarttrim.recorded(dense) as dense_runs:
        expected = answers(case, dense)
    assert (actual - expected).abs().max() <= 2e-6 * expected.abs().max()
    kept = smarttrim.kept_by(both, runs)
    assert kept.flop_ratio == smarttrim.kept_by(dense, dense_runs).flop_ratio < 0.9
    report = str(vleff.explain(both))
    assert "masked_linear" in report and "tokens; own attention" in report


def test_in_bfloat16_and_compiled(composed: tuple[Case, Any, Any]) -> None:
    case, both, _ = composed
    expected = answers(case, both)
    assert torch.equal(answers(case, torch.compile(both, backend="eager", fullgraph=True)), expected)
    counter = CompileCounterWithBackend("eager")
    rounded = answers(case, torch.compile(both.bfloat16(), backend=counter, fullgraph=True))
    assert counter.frame_count == 1
    torch.testing.assert_close(rounded, answers(case, both), atol=0, rtol=0)


def test_compiled_by_inductor() -> None:
    case = make_case(ViltForQuestionAnswering)
    sparse(case.model)
    both = with_trimmers(case.model).bfloat16()
    expected = answers(case, both)
    with smarttrim.recorded(both) as runs:
        answers(case, both)
    assert smarttrim.kept_by(both, runs).flop_ratio < 0.9
    actual = answers(case, torch.compile(both, fullgraph=True))
    assert (actual - expected).abs().max() <= 0.02 * expected.abs().max()


def test_both_are_trained_and_saved(composed: tuple[Case, Any, Any], tmp_path: Path) -> None:
    case, both, _ = composed
    labels = {"labels": torch.rand(4, case.model.config.num_labels)}
    if isinstance(both, BertForQuestionAnswering):
        labels = {name: torch.ones(4, dtype=torch.long) for name in ("start_positions", "end_positions")}
    smarttrim.training_loss(both.train(), case.inputs | labels, step=0, total_steps=10).loss.backward()
    masked = next(layer for layer in both.modules() if isinstance(layer, MaskedLinear))
    assert masked.values.grad is not None and masked.values.grad.abs().sum() > 0
    assert all(value.grad is not None for value in smarttrim.trimmer_parameters(both).values())

    smarttrim.save_pretrained(both.eval(), tmp_path)
    expected = answers(case, both)
    assert torch.equal(answers(case, smarttrim.from_pretrained(tmp_path)), expected)
    untrimmed = answers(case, lottery.from_pretrained(tmp_path))
    assert torch.equal(untrimmed, answers(case, vleff.restore(smarttrim.detach(both))))
    assert not torch.allclose(untrimmed, expected)


def test_a_dual_encoder_with_trimmed_and_sparse_towers(tmp_path: Path) -> None:
    student = with_trimmers(sparse(small_models.student("vqa")))
    inputs = small_models.texts() | {"pixel_values": torch.randn(4, 3, 32, 32)}

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    with smarttrim.recorded(student) as runs:
        actual = logits(student)
    assert smarttrim.kept_by(student, runs).flop_ratio < 0.95
    with torch.no_grad():
        by_parts = student.score(
            student.encode_text(inputs["input_ids"], inputs["attention_mask"]),
            student.encode_image(inputs["pixel_values"]),
        )
    torch.testing.assert_close(by_parts, actual)
    alone = [logits_of_one(student, inputs, sample) for sample in range(4)]
    torch.testing.assert_close(torch.cat(alone), actual, atol=2e-6, rtol=1e-5)  # no sample depends on its mates
    smarttrim.save_pretrained(student, tmp_path)
    loaded = smarttrim.from_pretrained(tmp_path)
    assert isinstance(loaded, DualEncoder) and torch.equal(logits(loaded), actual)


def logits_of_one(model: Any, inputs: dict[str, Tensor], sample: int) -> Tensor:
    with torch.no_grad():
        return model(**{name: value[sample : sample + 1] for name, value in inputs.items()}).logits
