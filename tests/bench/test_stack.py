"""`vleff bench --stack`: the methods alone and together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import ViltForQuestionAnswering

from vleff.bench import stack
from vleff.bench.models import samples_for
from vleff.bench.run import Settings
from vleff.bench.stack_results import FLOP_RATIO, METHODS, REFERENCE, StackCell, subsets
from vleff.nn import MaskedLinear

NAMES = list(subsets())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def batch_of(folder: Path, batch: int) -> tuple[ViltForQuestionAnswering, dict[str, torch.Tensor]]:
    loaded = stack.answering_model(str(folder), 0)
    samples = samples_for(loaded, None, None, 0, "square")
    model: Any = loaded.model
    return model, samples.batches(batch, at_least=batch)[0].inputs


def test_all_subsets_are_there() -> None:
    assert len(NAMES) == 2 ** len(METHODS) and NAMES[0] == "accelerated" and NAMES[-1] == " + ".join(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_its_methods(name: str, answering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, inputs = batch_of(answering, 4)
    before = {key: value.clone() for key, value in fusion.state_dict().items()}
    seen: list[Any] = []
    answer = stack._answer
    monkeypatch.setattr(stack, "_answer", lambda model, *rest: seen.append(model) or answer(model, *rest))
    contender = stack.combined(fusion, subsets()[name], inputs)
    out = contender.answer()
    assert out.shape == (4, 5) and torch.equal(contender.answer(), out)
    (model,) = seen
    sparse = any(isinstance(module, MaskedLinear) for module in model.modules())
    assert sparse == ("lottery" in name)
    assert (type(model).__name__ == "DualEncoder") == ("DiDE" in name)
    if "SmartTrim" in name:
        assert contender.flop_ratio is not None and contender.flop_ratio < 1
    else:
        assert contender.flop_ratio is None
    assert all(torch.equal(value, before[key]) for key, value in fusion.state_dict().items())  # a copy was changed


def test_wrong_answers_are_noticed(answering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, inputs = batch_of(answering, 2)
    monkeypatch.setattr(stack.vleff, "accelerate", lambda model: model.classifier[3].weight.data.mul_(2))
    with pytest.raises(ValueError, match="outputs differ by"):
        stack.combined(fusion, (), inputs)


def test_a_run_writes_its_results(answering: Path, tmp_path: Path) -> None:
    settings = Settings(str(answering), batches=(2,), budget=0.01, threads=1, output=tmp_path / "out")
    console = Console(width=100, record=True)
    results = stack.run(settings, console)
    assert results.complete and not results.unavailable
    written = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert written == [".json", ".png"]
    content = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert content["complete"] and content["flop_ratio_wanted"] == FLOP_RATIO
    full, half = content["cells"]
    assert list(full["times"]) == [REFERENCE, *NAMES] and list(half["times"]) == [REFERENCE, "eager", *NAMES]
    assert all(len(times) >= 6 for times in full["times"].values())
    assert half["speedup"][NAMES[-1]]["low"] is not None
    text = " ".join(console.export_text().split())
    assert all(name in text for name in NAMES) and "measures time, not accuracy" in text


def test_an_engine_that_fails_is_named(answering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: Any, example: Any) -> Any:
        raise stack.engines.EngineUnavailableError("it is not here")

    monkeypatch.setitem(stack.engines.OTHERS, "openvino", fails)
    settings = Settings(
        str(answering), dtypes=("fp32",), batches=(1,), against=("openvino",), budget=0.01, output=tmp_path
    )
    results = stack.run(settings, Console(quiet=True))
    assert results.unavailable == {"openvino (fp32, batch 1)": "it is not here"}
    assert "openvino" not in results.cells[0].times


def test_an_interrupted_run_keeps_what_was_measured(
    answering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(contenders: dict[str, Any], budget: float) -> Any:
        yield dict.fromkeys(contenders, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "measure_rounds", interrupted)
    results = stack.run(Settings(str(answering), batches=(1,), output=tmp_path / "out"), Console(quiet=True))
    assert not results.complete and [cell.rounds for cell in results.cells] == [1]
    content = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert not content["complete"] and content["cells"][0]["speedup"]["DiDE"] == {
        "speedup": 1.0, "low": None, "high": None, "rounds": 1
    }  # fmt: skip


def test_other_models_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="expected vilt or a ViLT checkpoint to stack methods on"):
        stack.answering_model(str(tiny_bert), 0)


def test_speedups_are_over_eager_fp32() -> None:
    cell = StackCell("bf16", 8, times={REFERENCE: [4.0] * 6, "eager": [3.0] * 6, "DiDE": [1.0] * 6})
    assert cell.speedup("DiDE").speedup == 4 and cell.speedup("DiDE", over="eager").speedup == 3
