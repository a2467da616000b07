"""Trimmed models in folders."""

import json

import pytest
import torch
from methods.smarttrim.families import trimmed
from transformers import BertConfig, BertModel, ViltForQuestionAnswering

from vleff import smarttrim


def test_round_trip(family, tmp_path):
    smarttrim.save_pretrained(family.model, tmp_path / "model")
    loaded = smarttrim.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(family.model) and not loaded.training
    expected, actual = family.outputs(), family.outputs(loaded)
    assert all(torch.equal(actual[name], wanted) for name, wanted in expected.items())


def test_transformers_reads_the_model_without_trimmers(tmp_path):
    family = trimmed(ViltForQuestionAnswering)
    smarttrim.save_pretrained(family.model, tmp_path)
    plain, loading = ViltForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["unexpected_keys"] and not loading["missing_keys"]
    expected = family.outputs(family.accelerated)["logits"]
    torch.testing.assert_close(family.outputs(plain.eval())["logits"], expected, atol=1e-5, rtol=1e-5)


def test_the_dtype_and_the_config_stay(tmp_path):
    config = smarttrim.SmartTrimConfig(layers=(2,), heads=False, flop_target=0.4)
    family = trimmed(ViltForQuestionAnswering, config=config)
    family.model.to(torch.bfloat16)
    smarttrim.save_pretrained(family.model, tmp_path)
    loaded = smarttrim.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert next(smarttrim.trimmers_of(loaded)[0].parameters()).dtype == torch.bfloat16
    assert smarttrim.trimmers_of(loaded)[0].execution.config == config


def test_nothing_is_overwritten(tmp_path):
    family = trimmed(ViltForQuestionAnswering)
    smarttrim.save_pretrained(family.model, tmp_path)
    with pytest.raises(FileExistsError):
        smarttrim.save_pretrained(family.model, tmp_path)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"smarttrim\.json"):
        smarttrim.from_pretrained(tmp_path)
    smarttrim.save_pretrained(trimmed(ViltForQuestionAnswering).model, tmp_path)
    path = tmp_path / "smarttrim.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"class": "os.system"}))
    with pytest.raises(ValueError, match="model class"):
        smarttrim.from_pretrained(tmp_path)
    path.write_text(json.dumps(description | {"format": 7}))
    with pytest.raises(ValueError, match="format"):
        smarttrim.from_pretrained(tmp_path)
    config = description["config"] | {"layers": [1]}
    path.write_text(json.dumps(description | {"config": config}))
    with pytest.raises(ValueError, match="trimmers"):
        smarttrim.from_pretrained(tmp_path)


def test_models_without_trimmers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="attach"):
        smarttrim.save_pretrained(
            BertModel(BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)), tmp_path
        )
