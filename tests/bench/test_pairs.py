"""Questions with photos: what the batches hold, and that every vision-language model is measured right."""

from pathlib import Path

import pytest
import torch
import transformers

from vleff.bench import engines
from vleff.bench.blip_vqa import BlipVqaEncoders
from vleff.bench.flops import FlopCount
from vleff.bench.inputs import Batch, bert_question_ids
from vleff.bench.matching import match, reference_outputs
from vleff.bench.models import LoadedModel, load_model, samples_for
from vleff.bench.pairs import PairFormat, pair_format, pair_samples, with_special_tokens
from vleff.bench.photos import Photos

pytest.importorskip("PIL", reason="photos need Pillow")

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
IMAGE = {"image_size": 64, "patch_size": 16}


def vilt() -> transformers.PreTrainedModel:
    return transformers.ViltModel(transformers.ViltConfig(image_size=384, patch_size=32, **SIZES))


def clip() -> transformers.PreTrainedModel:
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=SIZES, vision_config={**SIZES, **IMAGE}))


def blip() -> transformers.PreTrainedModel:
    text = {**SIZES, "encoder_hidden_size": 64}
    vision = {**SIZES, **IMAGE, "initializer_range": 0.02}
    return BlipVqaEncoders(transformers.BlipConfig(text_config=text, vision_config=vision))


def bridgetower() -> transformers.PreTrainedModel:
    sizes = {**SIZES, "num_hidden_layers": 3}
    vision = {**IMAGE, "hidden_size": 64, "num_hidden_layers": 3}
    config = transformers.BridgeTowerConfig(text_config=sizes, vision_config=vision, **SIZES)
    return transformers.BridgeTowerModel(config)


MODELS = [vilt, clip, blip, bridgetower]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel("vilt", request.param().eval(), "random")  # the name of a preset: takes the shipped questions


def batches(loaded: LoadedModel, size: int = 3) -> list[Batch]:
    return samples_for(loaded, None, None, seed=0).batches(size, at_least=size)


def test_hidden_states_have_the_sizes_that_the_batch_says(loaded: LoadedModel) -> None:
    (batch,) = batches(loaded)
    states = engines.dense(loaded.model, batch.inputs)(batch.inputs)
    assert [one.shape[:2] for one in states] == [valid.shape for valid in batch.valid]
    assert min(batch.lengths) < batch.padded_length
    for row in range(3):
        alone = engines.dense(loaded.model, {})(batch.alone(row))
        assert sum(one.shape[1] for one in alone) == batch.lengths[row]


def test_what_is_padding_does_not_matter_and_the_rest_does(loaded: LoadedModel) -> None:
    (batch,) = batches(loaded)
    references = reference_outputs(loaded.model, [batch])
    states = engines.dense(loaded.model, {})(batch.inputs)
    poisoned = tuple(s.masked_fill(~v[..., None], torch.nan) for s, v in zip(states, batch.valid, strict=True))
    assert match([batch], [states], [poisoned], references, torch.float32).ok
    for which, valid in enumerate(batch.valid):
        for row in range(3):
            changed = [one.clone() for one in states]
            changed[which][row, valid[row].nonzero()[-1], 0] += 1
            assert not match([batch], [states], [tuple(changed)], references, torch.float32).ok


def test_operations_follow_the_lengths(loaded: LoadedModel) -> None:
    count = FlopCount(loaded.model)
    (batch,) = batches(loaded)
    assert count.ragged(batch) < count.padded(batch)
    (one,) = batches(loaded, size=1)
    assert count.ragged(one) == count.padded(one)


def test_operations_of_vilt_are_those_of_its_formula() -> None:
    count = FlopCount(vilt().eval())
    (batch,) = samples_for(LoadedModel("vilt", count.model, ""), None, None, seed=0).batches(4, at_least=4)
    linears = 4 * 64 * 64 + 2 * 64 * 128

    def encoder(length: int) -> int:
        return 2 * 2 * (length * linears + 2 * length * length * 64) + 2 * 64 * 64  # two layers and the pooler

    def convolution(values: torch.Tensor) -> int:
        return 2 * values[:, 0].numel() // 32**2 * 3 * 32 * 32 * 64

    alone = [batch.alone(row)["pixel_values"] for row in range(4)]
    assert count.padded(batch) == 4 * encoder(batch.padded_length) + convolution(batch.inputs["pixel_values"])
    assert count.ragged(batch) == sum(encoder(n) + convolution(v) for n, v in zip(batch.lengths, alone, strict=True))


def test_vilt_takes_mixed_sizes_or_squares() -> None:
    loaded = LoadedModel("vilt", vilt().eval(), "")
    (mixed,) = samples_for(loaded, None, None, seed=0).batches(8)
    (square,) = samples_for(loaded, None, None, seed=0, images="square").batches(8)
    sizes = {tuple(mixed.alone(row)["pixel_values"].shape[2:]) for row in range(8)}
    assert len(sizes) > 2
    assert all(edge % 32 == 0 and edge <= 640 for size in sizes for edge in size)
    assert any(min(size) == 384 for size in sizes)
    assert square.inputs["pixel_values"].shape == (8, 3, 384, 384)
    assert bool(square.inputs["pixel_mask"].all())
    assert mixed.in_order == square.in_order == mixed.inputs["input_ids"].shape[1] + 1


def test_only_vilt_takes_images_of_several_sizes() -> None:
    with pytest.raises(ValueError, match="images: clip does not take"):
        samples_for(LoadedModel("clip", clip(), ""), None, None, seed=0, images="mixed")


def test_photos_of_the_user_keep_their_format(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (300, 100), (255, 0, 0)).save(tmp_path / "wide.png")
    form = PairFormat(padding=0, maximum_length=40, image_size=384, image_tokens=145, one_sequence=True)
    samples = pair_samples([[5, 6]], "words", Photos(tmp_path, seed=0), form, mixed=True)
    pixels = samples.batches(1)[0].inputs["pixel_values"]
    assert pixels.shape == (1, 3, 192, 608)  # as 639 x 213, cut to multiples of 32


def test_special_tokens_are_those_of_the_model() -> None:
    ids = bert_question_ids()
    assert with_special_tokens(ids, vilt().config) == ids
    in_clip, in_bridgetower = (with_special_tokens(ids, make().config) for make in (clip, bridgetower))
    assert {(row[0], row[-1]) for row in in_clip} == {(49406, 49407)}
    assert {(row[0], row[-1]) for row in in_bridgetower} == {(0, 2)}
    assert [row[1:-1] for row in in_clip] == [row[1:-1] for row in ids]


def test_formats_are_those_of_the_configs() -> None:
    assert pair_format(clip().config) == PairFormat(1, 77, 64, 17)
    assert pair_format(bridgetower().config) == PairFormat(1, 512, 64, 17)
    assert pair_format(vilt().config) == PairFormat(0, 40, 384, 145, one_sequence=True)


def test_local_directory_of_a_vision_language_model(tiny_bert: Path, tmp_path: Path) -> None:
    clip().save_pretrained(tmp_path)
    for file in tiny_bert.glob("*token*"):
        (tmp_path / file.name).symlink_to(file)
    loaded = load_model(str(tmp_path))
    (batch,) = samples_for(loaded, None, None, seed=0).batches(2, at_least=2)
    assert isinstance(loaded.model, transformers.CLIPModel)
    assert set(batch.inputs) == {"input_ids", "attention_mask", "pixel_values"}
