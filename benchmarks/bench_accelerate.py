"""accelerate on encoder layers of published sizes, on real input, against the dense engines."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import vleff
from vleff.bench.inputs import Batch, Samples, bert_token_ids, text_samples
from vleff.bench.models import load_model, samples_for
from vleff.bench.photos import Photos, photo_samples

LAYERS = 4
EVEN_TARGETS = {
    torch.float32: {"eager": 1.40, "openvino": 1.0},
    torch.bfloat16: {"eager": 1.22, "openvino": 1.0},
}
PARAGRAPH_TARGETS = {torch.float32: {"eager": 2.9}, torch.bfloat16: {"eager": 2.6}}


def bert(dtype: torch.dtype) -> nn.Module:
    """Layers of BERT-base with seeded random weights."""
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=LAYERS)
    return transformers.AutoModel.from_config(config).eval().to(dtype)


def vit(dtype: torch.dtype) -> nn.Module:
    """Layers of ViT-base with seeded random weights."""
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(transformers.ViTConfig(num_hidden_layers=LAYERS)).eval().to(dtype)


def paragraphs() -> Samples:
    return text_samples(bert_token_ids(), "SQuAD paragraphs", padding=0)


def even_batch(batch: int = 8, length: int = 269) -> Batch:
    """Wikipedia text cut to samples of equal length."""
    tokens = torch.tensor(list(chain.from_iterable(bert_token_ids()))[: batch * length]).view(batch, length)
    mask = torch.ones_like(tokens)
    return Batch({"input_ids": tokens, "attention_mask": mask}, (mask.bool(),), list(range(batch)))


@pytest.mark.benchmark(group="BERT-base layers, 8 x 269 tokens, no padding")
def test_even_lengths(against_engines: Callable[..., None], dtype: torch.dtype) -> None:
    names = ("compile", "openvino", "onnxruntime")
    against_engines(bert(dtype), [even_batch()], dtype, EVEN_TARGETS[dtype], names, budget=25)


@pytest.mark.benchmark(group="BERT-base layers, 3 batches of 32 SQuAD paragraphs padded to their longest")
def test_paragraphs(against_engines: Callable[..., None], dtype: torch.dtype) -> None:
    batches = paragraphs().batches(32, at_least=96)
    against_engines(bert(dtype), batches, dtype, PARAGRAPH_TARGETS[dtype])


@pytest.mark.benchmark(group="BERT-base layers, 8 SQuAD paragraphs one by one")
def test_batch_of_one(against_engines: Callable[..., None], dtype: torch.dtype) -> None:
    batches = paragraphs().batches(1)
    against_engines(bert(dtype), batches, dtype, {"eager": 1.0}, ("compile", "openvino"), budget=15)


@pytest.mark.benchmark(group="ViT-base layers, 8 photos")
def test_photos(against_engines: Callable[..., None], dtype: torch.dtype) -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    batches = photo_samples(Photos(None, seed=0), image_size=224, tokens=197).batches(8)
    against_engines(vit(dtype), batches, dtype, {"eager": 1.0}, budget=15)


@pytest.mark.benchmark(group="Accelerated models by torch.compile, batch of 8, against the same models uncompiled")
@pytest.mark.parametrize("name", ["bert-base", "vilt", "clip"])
def test_compiled(interleaved: Callable[..., None], name: str, dtype: torch.dtype) -> None:
    loaded = load_model(name)
    images = "square" if name == "vilt" else None
    inputs = samples_for(loaded, None, None, seed=0, images=images).batches(8, at_least=8)[0].inputs
    model = vleff.accelerate(loaded.model.to(dtype))
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    with torch.inference_mode():
        model(**inputs)  # packs the weights
        compiled = torch.compile(model, fullgraph=True)
        torch.manual_seed(0)  # ViLT draws patches
        expected = model(**inputs)
        torch.manual_seed(0)
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(compiled(**inputs), expected, atol=tolerance, rtol=tolerance)
        interleaved(
            partial(compiled, **inputs), {"uncompiled": partial(model, **inputs)}, {"uncompiled": 1.0}, budget=12
        )


@pytest.mark.benchmark(group="Peak memory, BERT-base layers, 32 SQuAD paragraphs")
def test_peak_memory(benchmark, dtype: torch.dtype) -> None:
    """Peak resident memory of a process that loads a model and runs one batch three times.

    `extra_info` gets megabytes: of the whole process, and above what it held before the model was made.
    """
    script = [
        sys.executable,
        str(Path(__file__).with_name("peak_memory.py")),
        str(dtype).removeprefix("torch."),
    ]
    environment_output = {"check": True, "capture_output": True, "text": True}
    eager = json.loads(subprocess.run([*script, "eager"], **environment_output).stdout)
    ours = benchmark.pedantic(lambda: json.loads(subprocess.run([*script, "vleff"], **environment_output).stdout))
    benchmark.extra_info["peak_memory"] = {
        "eager": eager,
        "vleff": ours,
        "ratio": ours["peak"] / eager["peak"],
        "ratio_above_start": (ours["peak"] - ours["start"]) / (eager["peak"] - eager["start"]),
        "target": 1.05,
    }
