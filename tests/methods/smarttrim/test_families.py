"""Training in every family, and what is peculiar to some."""

import copy

import pytest
import torch
from methods.smarttrim.families import MODELS, stir, trimmed
from model_cases import make_case, text_inputs
from transformers import (
    BertForQuestionAnswering,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    BridgeTowerForContrastiveLearning,
    BridgeTowerModel,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    MPNetModel,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
    ViltModel,
)

import vleff
from vleff import smarttrim
from vleff.models.meter import MeterModel
from vleff.models.meter_heads import MeterForQuestionAnswering
from vleff.smarttrim import SmartTrimConfig, training_loss

WITHOUT_LOSS = (
    ViltModel,
    MeterModel,
    BridgeTowerModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    BridgeTowerForContrastiveLearning,
)
TRAINED = [model_class for model_class in MODELS if model_class not in WITHOUT_LOSS]


def inputs_with_labels(family):
    """A call's arguments with labels that fit the head, and a task loss where the model has none."""
    model, inputs = family.model, dict(family.case.inputs)
    if isinstance(model, CLIPModel | BlipModel):
        return inputs | {"return_loss": True}, None
    if isinstance(model, BlipForImageTextRetrieval):
        labels = torch.tensor([0, 1, 1, 0])
        return inputs, lambda outputs, _: torch.nn.functional.cross_entropy(outputs.itm_score, labels)
    if isinstance(model, BlipForQuestionAnswering):
        return inputs | {"labels": inputs["decoder_input_ids"]}, None
    if isinstance(model, BlipForConditionalGeneration):
        return inputs | {"labels": inputs["input_ids"]}, None
    if type(model).__name__.endswith("ForQuestionAnswering") and not isinstance(
        model, ViltForQuestionAnswering | MeterForQuestionAnswering
    ):
        return inputs | {
            "start_positions": torch.tensor([1, 5, 9, 0]),
            "end_positions": torch.tensor([2, 9, 9, 0]),
        }, None
    labels = family.outputs()["logits"]
    if isinstance(model, ViltForQuestionAnswering | MeterForQuestionAnswering):
        return inputs | {"labels": (torch.rand(labels.shape) < 0.3).float()}, None
    return inputs | {"labels": torch.randint(0, labels.shape[1], labels.shape[:1])}, None


@pytest.mark.parametrize("training", ["masked", "gathered"])
@pytest.mark.parametrize("model_class", TRAINED, ids=lambda model_class: model_class.__name__)
def test_every_trimmer_gets_gradients(model_class, training):
    family = trimmed(model_class, config=SmartTrimConfig(training=training))
    inputs, task_loss = inputs_with_labels(family)
    model = stir(family.model, bias=0.5, strength=3.0).train()
    parts = training_loss(model, inputs, 5, 10, task_loss)
    assert all(torch.tensor(value).isfinite() for value in parts.numbers().values()), parts.numbers()
    assert 0 < parts.flop_ratio < 1 and parts.distillation > 0
    parts.loss.backward()
    without_image = ("other_weight", "temperature", "cross") if isinstance(model, BlipModel) else ()
    for name, parameter in smarttrim.trimmer_parameters(model).items():
        if any(part in name for part in without_image):
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("model_class", [ViltForQuestionAnswering, MeterForQuestionAnswering, BlipForQuestionAnswering])
def test_gradients_of_masked_training_are_those_of_gates(model_class):
    """A gate's gradient is a finite difference of the loss in fp32: weights of keys and of the output."""
    family = trimmed(model_class, config=SmartTrimConfig(training="masked", heads=False))
    inputs, _ = inputs_with_labels(family)
    model = family.model.eval()
    with smarttrim.running(model, "masked"), smarttrim.recorded(model) as runs:
        model(**inputs)
    with smarttrim.repeated(model, runs), smarttrim.running(model, "masked"), smarttrim.recorded(model) as made:
        loss = model(**inputs).loss
    gates = [record.share_gates for run in made for record in run.layers if record.share_gates is not None]
    grads = torch.autograd.grad(loss, gates, allow_unused=True)
    assert any((grad[gate == 0] != 0).any() for grad, gate in zip(grads, gates, strict=True) if grad is not None)


def test_clip_keeps_the_end_of_text():
    family = trimmed(CLIPTextModel)
    stir(family.model, bias=-50.0)  # wants to drop everything
    ids = family.case.inputs["input_ids"]
    with smarttrim.recorded(family.model) as runs:
        pooled = family.outputs()["pooler_output"]
    model = family.case.model
    ends = ids.argmax(-1) if model.eos_token_id == 2 else (ids == model.eos_token_id).int().argmax(-1)
    kept = runs[0].layers[-1].kept()
    assert kept[torch.arange(4), ends].all() and kept[:, 0].all()
    assert kept.sum(1).tolist() == [1 if end == 0 else 2 for end in ends.tolist()]
    assert pooled.any(1).all()


def test_a_dropped_token_is_no_answer():
    family = trimmed(BertForQuestionAnswering)
    with smarttrim.recorded(family.model) as runs:
        logits = family.outputs()
    kept = runs[0].layers[-1].kept()
    for name in ("start_logits", "end_logits"):
        assert (logits[name][~kept] == torch.finfo(torch.float32).min).all()
        assert (logits[name][kept].abs() < 1e3).all()
    with smarttrim.running(family.model, "full"):
        full = family.outputs()
    assert all(torch.equal(full[name], value) for name, value in family.outputs(family.accelerated).items())


def test_a_dropped_gold_answer_costs_little_enough_to_train():
    family = trimmed(BertForQuestionAnswering)
    stir(family.model, bias=-50.0)
    inputs, _ = inputs_with_labels(family)
    parts = training_loss(family.model.train(), inputs, 5, 10)
    assert 5 < parts.task < 100


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@pytest.mark.parametrize("model_class", [BlipForQuestionAnswering, BlipForConditionalGeneration])
def test_generation_does_not_see_dropped_tokens(model_class, arguments):
    family = trimmed(model_class)
    inputs = {name: value for name, value in family.case.inputs.items() if not name.startswith("decoder")}
    given = {"max_new_tokens": 6, "min_new_tokens": 6, **arguments}
    with smarttrim.recorded(family.model) as runs:
        actual = family.model.generate(**inputs, **given)
    # what is dropped is not seen: other numbers in its place change nothing
    seen = []
    decoder = family.model.text_decoder.bert.encoder.layer[0].crossattention.self
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    again = family.model.generate(**inputs, **given)
    handle.remove()
    assert torch.equal(actual, again)
    kept = runs[-1].layers[-1].kept().sum(1)
    longest = [
        value.shape[1] for _, kwargs in seen for name, value in kwargs.items() if name == "encoder_hidden_states"
    ]
    assert longest and set(longest) == {int(kept.max())}
    with smarttrim.running(family.model, "full"):
        full = family.model.generate(**inputs, **given)
    assert torch.equal(full, family.accelerated.generate(**inputs, **given))


def test_captions_of_one_image_do_not_depend_on_others():
    family = trimmed(BlipForConditionalGeneration)
    inputs = family.case.inputs | text_inputs((5, 5, 5, 5))
    together = family.outputs(**inputs)["logits"]
    for sample in range(4):
        alone = family.outputs(**{name: value[sample : sample + 1] for name, value in inputs.items()})["logits"]
        torch.testing.assert_close(alone[0], together[sample], atol=1e-5, rtol=1e-5)


def test_blip_text_without_an_image_is_trimmed_by_itself():
    family = trimmed(BlipModel)
    text = text_inputs()
    with torch.no_grad(), smarttrim.recorded(family.model) as runs:
        features = family.model.get_text_features(**text).pooler_output
        with smarttrim.repeated(family.model, runs), smarttrim.running(family.model, "masked"):
            masked = family.model.get_text_features(**text).pooler_output
    assert [block.name for block in runs[0].specs[0].layers[1].blocks] == ["own"]
    torch.testing.assert_close(masked, features, atol=1e-5, rtol=1e-5)


def test_vilt_with_two_images_makes_two_runs():
    family = trimmed(ViltForImagesAndTextClassification)
    with smarttrim.recorded(family.model) as runs:
        gathered = family.outputs()["logits"]
    assert len(runs) == 2
    with smarttrim.repeated(family.model, runs), smarttrim.running(family.model, "masked"):
        torch.testing.assert_close(family.outputs()["logits"], gathered, atol=1e-5, rtol=1e-5)


def test_what_packed_calls_do_not_give_is_refused():
    family = trimmed(ViltModel)
    for name in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=name):
            family.model(**family.case.inputs, **{name: True})
    handle = family.model.encoder.layer[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        family.outputs()
    handle.remove()
    with pytest.raises(ValueError, match="dtype or a device"):
        copy.deepcopy(family.model).double()(
            **{name: x.double() if x.is_floating_point() else x for name, x in family.case.inputs.items()}
        )
    with smarttrim.running(family.model, "full"):
        assert family.model(**family.case.inputs, output_hidden_states=True).hidden_states is not None


def test_what_cannot_be_attached():
    with pytest.raises(TypeError, match="MPNetModel"):
        smarttrim.attach(make_case(MPNetModel).model)
    family = trimmed(ViltModel)
    with pytest.raises(ValueError, match="has them"):
        smarttrim.attach(family.model)
    with pytest.raises(RuntimeError, match="detach"):
        vleff.restore(family.model)
    vleff.restore(smarttrim.detach(family.model))
    with pytest.raises(ValueError, match="numbers below 3"):
        smarttrim.attach(make_case(ViltModel).model, SmartTrimConfig(layers=(5,)))
    with pytest.raises(ValueError, match="threshold"):
        SmartTrimConfig(threshold=1.0)
