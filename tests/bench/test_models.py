import json
from pathlib import Path

import pytest

from vleff.bench.models import PRESETS, load_model, samples_for

PARAMETERS = {
    "bert-base": 109.5,
    "roberta-base": 124.6,
    "distilbert-base": 66.4,
    "vit-base": 86.4,
    "vilt": 111.6,
    "bridgetower": 326.3,
    "blip": 223.3,  # without the decoder
    "clip": 149.6,
    "meter": 318.7,
}  # millions


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_size(name: str) -> None:
    loaded = load_model(name)
    assert sum(p.numel() for p in loaded.model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.1)
    assert "random weights" in loaded.weights
    assert not loaded.model.training


def test_local_directory(tiny_bert: Path) -> None:
    loaded = load_model(str(tiny_bert))
    samples = samples_for(loaded, data=None, photos=None, seed=0)
    assert loaded.weights == f"weights of {tiny_bert}"
    assert samples.size == 96
    assert 50 < samples.batches(1)[0].lengths[0] < 512


def test_paragraphs_of_the_user(tiny_bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    contexts = ["one two three", "four"]
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": text, "qas": []} for text in contexts]}]}))
    samples = samples_for(load_model(str(tiny_bert)), data=file, photos=None, seed=0)
    assert str(file) in samples.description
    assert samples.batches(2)[0].lengths == [5, 3]  # with [CLS] and [SEP]


def test_wrong_kind_of_input_is_named(tiny_bert: Path, tiny_vit: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"photos: .* reads text"):
        samples_for(load_model(str(tiny_bert)), data=None, photos=tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"images: .* does not take"):
        samples_for(load_model(str(tiny_bert)), data=None, photos=None, seed=0, images="mixed")
    with pytest.raises(ValueError, match=r"data: .* reads images"):
        samples_for(load_model(str(tiny_vit)), data=tmp_path / "a.json", photos=None, seed=0)


def test_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: expected one of bert-base.*got '.*'"):
        load_model(str(tmp_path))


def test_directory_without_a_tokenizer_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(tiny_bert / file)
    with pytest.raises(ValueError, match=f"no tokenizer found for {tmp_path}"):
        samples_for(load_model(str(tmp_path)), data=None, photos=None, seed=0)
