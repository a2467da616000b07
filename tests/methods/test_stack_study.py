"""The study of stacked methods from end to end, with small models and a few steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stack_tile_vqa as example
import torch
from data_vqa.small_clothes import write_small_clothes
from tile_vqa_models import vilt_config
from transformers import ViltForQuestionAnswering

from vleff.bench.stack_results import FLOP_RATIO, subsets
from vleff.data.tile_features import tile_tokenizer
from vleff.dide import DualEncoder

SPEEDS = Path(__file__).parents[2] / "docs" / "results" / "stack.json"


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """With an untrained ViLT and a student that begins with its weights."""
    plan = example.Plan(pruning_steps=4, trimming_steps=2, batch=4, tested=20, save_steps=2, seeds=(0,))
    tokenizer, base, students = tile_tokenizer(), tmp_path / "base", tmp_path / "students"
    torch.manual_seed(0)
    model = ViltForQuestionAnswering(vilt_config(32, 2, len(tokenizer), layers=2))
    model.save_pretrained(base)
    folders = write_small_clothes(tmp_path / "data"), tmp_path / "work", tmp_path / "results"
    made = example.Study(tokenizer, *folders, plan, base, students)
    DualEncoder.from_fusion(model, "snli-ve").save_pretrained(made.student(0))
    return made


def test_all_units_the_table_and_the_figure(study: Any, tmp_path: Path) -> None:
    example.run(study)
    files = {name: f"{name.replace(' + ', '-')}-0.json" for name in subsets()}
    assert {path.name for path in study.results.iterdir()} == set(files.values())
    for name, methods in subsets().items():
        found = json.loads((study.results / files[name]).read_text())
        assert found["methods"] == list(methods) and found["seed"] == 0 and 0 <= found["accuracy"] <= 100
        assert (found["flop ratio"] is not None) == ("SmartTrim" in methods)
        assert found["flop ratio"] is None or FLOP_RATIO / 2 < found["flop ratio"] < 1.2  # trimmers are large here
        assert found["zeros"] == (pytest.approx(0.9, abs=1e-3) if "lottery" in methods else None)

    before = {path: path.stat().st_mtime_ns for path in study.results.iterdir()}
    example.run(study)
    assert before == {path: path.stat().st_mtime_ns for path in study.results.iterdir()}
    gone = study.results / files["SmartTrim + lottery"]
    expected = json.loads(gone.read_text())
    gone.unlink()
    example.run(study)  # only what is missing
    after = {path: path.stat().st_mtime_ns for path in study.results.iterdir()}
    assert before.keys() == after.keys() and [path for path in before if before[path] != after[path]] == [gone]
    assert json.loads(gone.read_text()) | {"seconds": 0} == expected | {"seconds": 0}

    rows = example.table(study.results).splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(subsets())
    example.draw(study.results, SPEEDS, tmp_path / "stack.png")
    assert (tmp_path / "stack.png").stat().st_size > 10_000


def test_a_missing_student_is_told(study: Any) -> None:
    (study.student(0) / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no student"):
        example.run(study)


def test_without_students_dual_encoders_are_left_out(study: Any) -> None:
    example.run(replace(study, students=None))
    methods = [tuple(json.loads(path.read_text())["methods"]) for path in study.results.iterdir()]
    assert sorted(methods) == sorted(one for one in subsets().values() if "DiDE" not in one)
