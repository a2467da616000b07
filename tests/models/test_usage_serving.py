"""Serving as people do it: pipelines, generation by two models, copies, export."""

import copy

import pytest
import torch
from model_cases import make_case, tensors
from model_cases.bart import BartEncoder
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    BlipTextModel,
    BridgeTowerModel,
    DistilBertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MPNetModel,
    RobertaModel,
    T5EncoderModel,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

import vleff
from vleff.models.blip_nlvr2 import BlipForNLVR2
from vleff.models.meter import MeterModel

WORDS = [*["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], *(chr(letter) for letter in range(97, 123))]


@pytest.fixture
def tokenizer(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*WORDS, *(f"##{word}" for word in WORDS[5:])]))
    return BertTokenizer(str(vocabulary))


def run_both(task, model_class, given, **arguments):
    case = make_case(model_class)
    plain, model = case.plain(), vleff.accelerate(case.model)
    return [pipeline(task, model=one, device="cpu", **arguments)(given) for one in (plain, model)]


TEXTS = ["a b c", "hello there", "x"]


def test_pipeline_of_classification(tokenizer):
    expected, actual = run_both(
        "text-classification", BertForSequenceClassification, TEXTS, tokenizer=tokenizer, batch_size=3
    )
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) < 1e-5


def test_pipeline_of_masked_words(tokenizer):
    expected, actual = run_both("fill-mask", BertForMaskedLM, ["a [MASK] c", "[MASK] me"], tokenizer=tokenizer)
    for ours, theirs in zip(actual, expected, strict=True):
        assert [word["token"] for word in ours] == [word["token"] for word in theirs]


@pytest.mark.parametrize("model_class", [BertModel, DistilBertModel])
def test_pipeline_of_features(tokenizer, model_class):
    expected, actual = run_both("feature-extraction", model_class, TEXTS, tokenizer=tokenizer)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-5, rtol=1e-5)


def test_pipeline_of_images():
    image = pytest.importorskip("PIL.Image").effect_noise((60, 50), 90).convert("RGB")
    processor = ViTImageProcessor(size={"height": 40, "width": 40})
    expected, actual = run_both("image-classification", ViTForImageClassification, image, image_processor=processor)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) < 1e-5


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@pytest.mark.parametrize("model_class", [BertModel])
def test_two_encoders_generate_the_same_tokens(model_class, arguments):
    sizes = make_case(model_class).model.config.to_dict()
    decoder = BertConfig(**(sizes | {"is_decoder": True, "add_cross_attention": True}))
    torch.manual_seed(0)
    plain = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**sizes), decoder)).eval()
    model = vleff.accelerate(copy.deepcopy(plain))
    ids = torch.randint(5, 99, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 10, "decoder_start_token_id": 3}
    given |= {"pad_token_id": 0, "eos_token_id": None}
    expected, actual = (one.generate(**given, **arguments) for one in (plain, model))
    assert torch.equal(actual, expected)
    assert [encoder.accelerated for encoder in vleff.explain(model).encoders] == [True, False]


@pytest.mark.parametrize(
    "model_class", [BertModel, RobertaModel, DistilBertModel, BlipTextModel, MPNetModel, T5EncoderModel, BartEncoder]
)
def test_an_exported_encoder_takes_any_token_counts(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    with torch.no_grad():
        program = torch.export.export(model, (), case.inputs, strict=False).module()
    for count in (1, 9, 17):
        other = copy.deepcopy(case)
        other.inputs["attention_mask"] = (torch.arange(17) < count).long().expand(4, 17).contiguous()
        expected = other.call(model).last_hidden_state
        with torch.no_grad():
            actual = program(**other.inputs).last_hidden_state
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", [ViTModel, BridgeTowerModel, MeterModel, BlipForNLVR2])
def test_whole_models_can_be_exported(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    with torch.no_grad():
        program = torch.export.export(model, (), case.inputs, strict=False).module()
        actual = tensors(program(**case.inputs))
    for name, expected in tensors(case.call(model)).items():
        torch.testing.assert_close(actual[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", [BertModel, DistilBertModel])
def test_an_exported_encoder_takes_any_batch_and_length(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=40)}
    with torch.no_grad():
        program = torch.export.export(
            model, (), case.inputs, dynamic_shapes=dict.fromkeys(case.inputs, sizes), strict=False
        ).module()
        for batch, length in ((2, 5), (7, 30)):
            mask = torch.rand(batch, length).lt(0.6).long()
            mask[:, 0] = 1
            inputs = {"input_ids": torch.randint(5, 99, mask.shape), "attention_mask": mask}
            expected, actual = (one(**inputs).last_hidden_state for one in (model, program))
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
