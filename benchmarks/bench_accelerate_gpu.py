"""accelerate on a GPU: whole encoders with seeded random weights, against the models as transformers wrote them.

`pytest benchmarks/bench_accelerate_gpu.py --benchmark-only --device cuda`
"""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, CLIPVisionConfig, PretrainedConfig

import vleff

MIXED = torch.randint(64, 513, (32,), generator=torch.Generator().manual_seed(0)).tolist()
SHORT = torch.randint(8, 129, (128,), generator=torch.Generator().manual_seed(0)).tolist()
LENGTHS = {"32 x 64-512 tokens": MIXED, "128 x 8-128 tokens": SHORT, "32 x 384 tokens": [384] * 32}
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@pytest.fixture(params=["fp32", "bf16"])
def gpu_dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        pytest.skip("measures a GPU: --device cuda")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[request.param]


def pair(config: PretrainedConfig, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The plain and the accelerated model."""
    torch.manual_seed(0)
    plain = AutoModel.from_config(config).eval().to("cuda", dtype)
    return plain, vleff.use_cuda_graphs(vleff.accelerate(copy.deepcopy(plain)))


def check(actual: Tensor, expected: Tensor, valid: Tensor | None, dtype: torch.dtype) -> None:
    """Fails where hidden states differ by more than rounding."""
    actual, expected = (x if valid is None else x[valid] for x in (actual, expected))
    error = (actual.float() - expected.float()).norm() / expected.float().norm()
    assert error <= ROUNDING[dtype], f"outputs differ from eager's by {float(error):.1e}"


def measure(
    interleaved: Callable[..., None],
    config: PretrainedConfig,
    dtype: torch.dtype,
    inputs: dict[str, Tensor],
    valid: Tensor | None,
    with_compiled: bool = False,
) -> None:
    plain, ours = pair(config, dtype)
    with torch.inference_mode():
        without_graphs = vleff.accelerate(copy.deepcopy(plain))
        expected = plain(**inputs).last_hidden_state
        check(ours(**inputs).last_hidden_state, expected, valid, dtype)
        check(without_graphs(**inputs).last_hidden_state, expected, valid, dtype)
        baselines = {"eager": partial(plain, **inputs), "vleff without graphs": partial(without_graphs, **inputs)}
        if with_compiled:
            compiled = torch.compile(copy.deepcopy(plain), mode="reduce-overhead")
            for _ in range(3):
                compiled(**inputs)
            baselines["torch.compile with graphs"] = partial(compiled, **inputs)
        interleaved(partial(ours, **inputs), baselines, {"eager": 1.0}, budget=2, whole=True)


@pytest.mark.benchmark(group="BERT-base on the GPU")
@pytest.mark.parametrize("name", LENGTHS)
def test_bert(interleaved: Callable[..., None], name: str, gpu_dtype: torch.dtype) -> None:
    lengths = torch.tensor(LENGTHS[name])
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(5, 30000, valid.shape, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids.cuda(), "attention_mask": valid.long().cuda()}
    with_compiled = name == "32 x 64-512 tokens" and gpu_dtype == torch.bfloat16
    measure(interleaved, BertConfig(), gpu_dtype, inputs, valid.cuda(), with_compiled)


@pytest.mark.benchmark(group="CLIP's ViT-B/16 on the GPU")
@pytest.mark.parametrize("batch", [1, 64])
def test_photos(interleaved: Callable[..., None], batch: int, gpu_dtype: torch.dtype) -> None:
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    config = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, patch_size=16, num_hidden_layers=12)
    measure(interleaved, config, gpu_dtype, {"pixel_values": pixels.to("cuda", gpu_dtype)}, None)
