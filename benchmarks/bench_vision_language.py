"""accelerate on whole vision-language models of published sizes, on real questions and photos."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import transformers
from torch import nn

import vleff
from vleff.bench.inputs import Batch, Samples, bert_question_ids, pad_texts
from vleff.bench.models import LoadedModel, load_model, samples_for
from vleff.bench.pairs import with_special_tokens
from vleff.bench.photos import Photos, photo_samples

pytest.importorskip("PIL", reason="photos need Pillow")

PAIRS = ("vilt", "vilt in mixed sizes", "meter", "blip", "clip", "bridgetower")
TARGETS = {
    torch.float32: {"eager": 1.35, "openvino": 1.0},
    torch.bfloat16: {"eager": 1.2, "openvino": 1.0},
}
MIXED_TARGETS = {torch.float32: {"eager": 1.8}, torch.bfloat16: {}}
TRAINING_TARGETS = {torch.float32: 1.15, torch.bfloat16: 1.3}


def _measure_pairs(against_engines: Callable[..., None], name: str, batch: int, dtype: torch.dtype) -> None:
    preset, _, mixed = name.partition(" ")
    loaded = load_model(preset)
    images = ("mixed" if mixed else "square") if preset == "vilt" else None
    batches = samples_for(loaded, None, None, seed=0, images=images).batches(batch, at_least=batch)
    targets = {"eager": 1.0} if batch == 1 else (MIXED_TARGETS if mixed else TARGETS)[dtype]
    against_engines(loaded.model.to(dtype), batches, dtype, targets, ("openvino",), budget=12)


@pytest.mark.benchmark(group="Vision-language models, 8 questions with photos")
@pytest.mark.parametrize("name", PAIRS)
def test_eight_pairs(against_engines: Callable[..., None], name: str, dtype: torch.dtype) -> None:
    _measure_pairs(against_engines, name, 8, dtype)


@pytest.mark.benchmark(group="Vision-language models, one question with a photo")
@pytest.mark.parametrize("name", PAIRS)
def test_one_pair(against_engines: Callable[..., None], name: str, dtype: torch.dtype) -> None:
    _measure_pairs(against_engines, name, 1, dtype)


@pytest.mark.benchmark(group="CLIP ViT-B/16 vision, 8 photos")
def test_clip_vision(against_engines: Callable[..., None], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(patch_size=16)).eval().to(dtype)
    samples = photo_samples(Photos(None, seed=0), image_size=224, tokens=197)
    against_engines(model, samples.batches(8), dtype, TARGETS[dtype], ("openvino",), budget=12)


@pytest.mark.benchmark(group="CLIP text, 32 questions padded to 77 tokens")
def test_clip_text(against_engines: Callable[..., None], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = transformers.CLIPConfig()
    model = transformers.CLIPTextModel(config.text_config).eval().to(dtype)
    ids = with_special_tokens(bert_question_ids(), config)

    def collate(numbers: list[int]) -> Batch:
        inputs = pad_texts([ids[number] for number in numbers], config.text_config.pad_token_id)
        missing = 77 - inputs["input_ids"].shape[1]
        values = {"input_ids": config.text_config.pad_token_id, "attention_mask": 0}
        inputs = {name: nn.functional.pad(x, (0, missing), value=values[name]) for name, x in inputs.items()}
        return Batch(inputs, (inputs["attention_mask"].bool(),), numbers)

    batches = Samples("questions", len(ids), collate).batches(32)
    against_engines(model, batches, dtype, {"eager": 1.0}, ("openvino",), budget=8)


@pytest.mark.benchmark(group="ViLT-base for visual question answering, forward and backward, 8 questions with photos")
def test_fine_tuning(interleaved: Callable[..., None], dtype: torch.dtype) -> None:
    """A step of fine-tuning without the optimizer; bf16 by autocast."""
    torch.manual_seed(0)
    config = transformers.ViltConfig(num_labels=3129)
    eager = transformers.ViltForQuestionAnswering(config).train()
    ours = vleff.accelerate(copy.deepcopy(eager))
    samples = samples_for(LoadedModel("vilt", eager, ""), None, None, seed=0, images="square")
    labels = torch.rand(8, config.num_labels).round()
    inputs = {**samples.batches(8)[0].inputs, "labels": labels}
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def step(model: nn.Module) -> torch.Tensor:
        model.zero_grad()
        torch.manual_seed(0)  # the order of the patches
        with autocast():
            loss = model(**inputs).loss
        loss.backward()
        return loss.detach()

    expected, got = step(eager), step(ours)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=0)
    largest = max(float(p.grad.norm()) for p in eager.parameters() if p.grad is not None)
    for (name, wanted), mine in zip(eager.named_parameters(), ours.parameters(), strict=True):
        if wanted.grad is not None:
            # the gradients of the keys' biases are zero but for rounding
            scale = wanted.grad.norm().clamp(min=1e-3 * largest)
            difference = float((mine.grad - wanted.grad).norm() / scale)
            assert difference < 10 * tolerance, f"gradient of {name}: {difference:.1e}"
    targets = {"eager": TRAINING_TARGETS[dtype]}
    interleaved(partial(step, ours), {"eager": partial(step, eager)}, targets, budget=25)
