"""Dropped tokens that live on as one."""

import pytest
import torch
from methods.smarttrim.families import trimmed
from transformers import BertModel, BlipForQuestionAnswering, BridgeTowerModel, ViltForQuestionAnswering, ViltModel

from vleff import smarttrim
from vleff.models.meter import MeterModel
from vleff.models.trimming import Stream
from vleff.smarttrim import SmartTrimConfig, training_loss
from vleff.smarttrim.merging import merge, with_merged_token

MERGING = SmartTrimConfig(merge_dropped=True)


def random_stream() -> Stream:
    mask = torch.tensor([[True] * 6, [True, True, False, False, True, True], [False] * 6])
    return Stream.pack(torch.randn(3, 6, 8), mask, first=2)


def test_the_merged_token_is_the_mean_of_what_was_dropped():
    stream = random_stream()
    states = stream.values.clone()
    merging = with_merged_token(stream)
    assert merging.parts.tolist() == [0, 2, 7, 9, 12, 12, 13] and merging.sizes.sum() == 10
    torch.testing.assert_close(merging.unpack(), stream.unpack())
    first = torch.zeros(13)
    first[[3, 5, 10]] = 1
    once = merge(merging, first)
    assert once.sizes[[6, 11, 12]].tolist() == [2, 1, 0]
    torch.testing.assert_close(once.values[6], (states[3] + states[5]) / 2)
    kept = once.compact(first == 0)
    second = torch.zeros(10)
    second[[2, 3]] = 1  # two more of the first sample
    twice = merge(kept, second)
    torch.testing.assert_close(twice.values[4], states[[2, 3, 4, 5]].mean(0))
    assert twice.sizes[4] == 4
    assert not twice.values[-1].any()  # of the empty sample
    back = twice.without_merged()
    assert back.tokens.max_length == 6 and back.tokens.offsets.tolist() == [0, 4, 7, 7]
    torch.testing.assert_close(back.unpack(), twice.unpack())


@pytest.mark.parametrize(
    "model_class",
    [ViltModel, MeterModel, BlipForQuestionAnswering, BridgeTowerModel, BertModel],
    ids=lambda c: c.__name__,
)
def test_masked_and_gathered_agree(model_class):
    family = trimmed(model_class, config=MERGING)
    with smarttrim.recorded(family.model) as runs:
        gathered = family.outputs()
    with smarttrim.repeated(family.model, runs), smarttrim.running(family.model, "masked"):
        masked = family.outputs()
    for name, value in gathered.items():
        scale = max(float(value.abs().max()), 1.0)
        torch.testing.assert_close(masked[name], value, atol=1e-5 * scale, rtol=0, msg=name)
    plain = trimmed(model_class)
    with smarttrim.repeated(plain.model, runs):
        other = plain.outputs()
    assert any(not torch.allclose(other[name], value, atol=1e-4) for name, value in gathered.items())


def test_a_sample_does_not_depend_on_its_batch_mates():
    family = trimmed(ViltModel, config=MERGING)
    together = family.outputs()["last_hidden_state"]
    assert together.shape == family.outputs(family.accelerated)["last_hidden_state"].shape
    for sample in range(4):
        alone = family.outputs(**{name: value[sample : sample + 1] for name, value in family.case.inputs.items()})
        assert torch.equal(alone["last_hidden_state"][0], together[sample])


def test_nothing_merged_is_nearly_the_accelerated_model():
    family = trimmed(ViltModel, stirred=False, config=MERGING)
    expected = family.case.tokens(family.outputs(family.accelerated)["last_hidden_state"])
    actual = family.case.tokens(family.outputs()["last_hidden_state"])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", ["masked", "gathered"])
def test_trains(training):
    family = trimmed(ViltForQuestionAnswering, config=SmartTrimConfig(merge_dropped=True, training=training))
    inputs = family.case.inputs | {"labels": torch.rand(family.outputs()["logits"].shape).round()}
    parts = training_loss(family.model.train(), inputs, 5, 10)
    parts.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in smarttrim.trimmer_parameters(family.model).values())
