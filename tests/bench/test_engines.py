import sys
from pathlib import Path

import pytest
import torch

from vleff.bench import engines
from vleff.bench.inputs import Batch, Samples
from vleff.bench.matching import match, reference_outputs
from vleff.bench.models import load_model, samples_for

DTYPES = [torch.float32, torch.bfloat16]
PACKAGES = {"compile": (), "openvino": ("openvino",), "onnxruntime": ("onnx", "onnxruntime")}
# what these engines may differ by from eager, in parts of the largest value: they promise no more
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.fixture(params=["tiny_bert", "tiny_vit"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "tiny_vit":
        pytest.importorskip("PIL", reason="photos need Pillow")
    return request.getfixturevalue(request.param)


def prepare(folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, list[Batch]]:
    loaded = load_model(str(folder))
    samples: Samples = samples_for(loaded, data=None, photos=None, seed=0)
    return loaded.model.to(dtype), samples.batches(3, at_least=6)


def run(build, model: torch.nn.Module, batches: list[Batch]) -> list[engines.HiddenStates]:
    engine = build(model, batches[0].inputs)
    return [engine(batch.inputs) for batch in batches]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vleff_matches_dense(folder: Path, dtype: torch.dtype) -> None:
    model, batches = prepare(folder, dtype)
    dense, ours = (run(build, model, batches) for build in (engines.dense, engines.vleff))
    result = match(batches, dense, ours, reference_outputs(model, batches), dtype)
    assert result.ok, result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", engines.OTHERS)
def test_other_engines_compute_the_model(folder: Path, dtype: torch.dtype, name: str) -> None:
    for package in PACKAGES[name]:
        pytest.importorskip(package, reason=f"{name} is optional")
    model, batches = prepare(folder, dtype)
    try:
        outputs = run(engines.OTHERS[name], model, batches)
    except engines.EngineUnavailableError as reason:
        assert "compiler" in str(reason) or (dtype == torch.bfloat16 and "bf16" in str(reason))
        return
    result = match(batches, run(engines.dense, model, batches), outputs, reference_outputs(model, batches), dtype)
    assert result.difference < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_missing_package_is_named(tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(engines.EngineUnavailableError, match=rf"pip install {name}"):
        engines.OTHERS[name](load_model(str(tiny_vit)).model, {})


def test_engines_leave_the_model_as_it_was(tiny_bert: Path) -> None:
    model, batches = prepare(tiny_bert, torch.float32)
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    expected = run(engines.dense, model, batches)
    run(engines.vleff, model, batches)
    assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before
    for got, wanted in zip(run(engines.dense, model, batches), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_model_that_cannot_be_accelerated_is_named() -> None:
    with pytest.raises(ValueError, match=r"model: expected a transformers model of the families"):
        engines.vleff(torch.nn.Linear(3, 3), {})
