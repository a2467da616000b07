"""The study of dual encoders on Tile VQA from end to end, with a small model and a few steps."""

import json
from pathlib import Path

import dide_tile_vqa as example
import pytest
import torch
from data_vqa.small_clothes import write_small_clothes
from tile_vqa_models import vilt_config
from transformers import ViltForQuestionAnswering

from vleff.data.tile_features import tile_tokenizer


def test_all_units_the_latency_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tile_tokenizer()
    torch.manual_seed(0)
    ViltForQuestionAnswering(vilt_config(32, 2, len(tokenizer), layers=2)).save_pretrained(tmp_path / "teacher")
    data, results = write_small_clothes(tmp_path / "data"), tmp_path / "results"
    plan = example.Plan(steps=2, batch=4, tested=20, save_steps=1, seeds=(0, 1))
    study = example.Study(tokenizer, data, tmp_path / "work", results, plan, tmp_path / "teacher")
    example.run(study)
    names = {example.unit_name(arm, seed) for arm in example.ARMS for seed in (0, 1)}
    assert {path.stem for path in results.glob("*.json")} == names | {"tile-fusion-encoder-0"}
    attending = json.loads((results / "tile-soft-labels-and-attention-1.json").read_text())
    assert 0 <= attending["accuracy"] <= 100

    teacher = study.fusion()
    batch = example.collate_classes(study.collate, study.tested_on[:4])
    assert batch["labels"].tolist() == [teacher.config.label2id[one.answer] for one in study.tested_on[:4]]
    towers = [example.student(study, arm, 0).text_model.state_dict() for arm in example.ARMS]
    name = next(name for name in towers[0] if name.endswith("query.weight"))
    assert not torch.equal(towers[0][name], towers[1][name]) and not torch.equal(towers[1][name], towers[2][name])

    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    (results / "tile-soft-labels-1.json").unlink()
    example.run(study)  # only what is missing
    after = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert before.keys() == after.keys() and sum(before[path] != after[path] for path in before) == 1

    monkeypatch.setattr(example, "measure_rounds", lambda run, budget: [dict.fromkeys(run, 1.0)] * 6)
    study.units.write("tile-latency", example.latency(study))
    lines = example.table(results).splitlines()
    assert sum(" | 2 | " in line and " ± " in line for line in lines) == 3
    assert sum("encoder" in line for line in lines) == 1 + 3
