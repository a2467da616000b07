"""The study on Tile VQA from end to end, with a small model and a few steps."""

import json
from pathlib import Path

import pytest
import smarttrim_tile_vqa as example
import torch
from data_vqa.small_clothes import write_small_clothes
from tile_vqa_models import vilt_config
from transformers import AutoTokenizer, ViltForQuestionAnswering

from vleff.data.tile_features import tile_tokenizer


def test_all_units_and_the_tables(tmp_path: Path) -> None:
    plan = example.Plan(
        steps=10, only_filled=0.5, further_steps=2, batch=4, tested=20, save_steps=5, ratios=(0.45,), seeds=(0, 1)
    )
    tokenizer = tile_tokenizer()

    def make() -> ViltForQuestionAnswering:
        torch.manual_seed(0)
        return ViltForQuestionAnswering(vilt_config(32, 2, len(tokenizer), layers=2))

    data, results = write_small_clothes(tmp_path / "data"), tmp_path / "results"
    study = example.Study(tokenizer, data, tmp_path / "work", results, plan, make)
    example.run(study)
    names = {f"{arm}-{seed}" for arm in ("full", "trimmed-0.45", "random-0.45", "gathered-0.45") for seed in (0, 1)}
    assert {path.stem for path in results.glob("*.json")} == {*names, "base"}
    assert AutoTokenizer.from_pretrained(tmp_path / "work" / "base").get_vocab() == tokenizer.get_vocab()
    base = json.loads((results / "base.json").read_text())
    assert list(base["curve"]) == [str(step) for step in range(1, 11)]
    full = json.loads((results / "full-0.json").read_text())
    assert full["accuracy"] == full["full accuracy"] and full["flop ratio"] == pytest.approx(1.0)
    assert full["kept of all cells"] == full["kept of cells that matter"] == 1.0
    assert sum(share["tokens"] != [1.0, 1.0] for share in full["shares"].values()) == 0

    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    (results / "random-0.45-1.json").unlink()
    example.run(study)  # only what is missing
    after = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert before.keys() == after.keys() and sum(before[path] != after[path] for path in before) == 1

    example.measure(study)
    lines = example.tables(results).splitlines()
    assert sum(" | 2 | " in line and " ± " in line for line in lines) == 4
    assert sum(line.startswith("| 0.45, batch ") for line in lines) == len(example.BATCHES)

    demo = tmp_path / "demo"
    example.write_demo(study, demo)
    for name in ("trimmed", "random"):
        assert example.smarttrim.from_pretrained(demo / name).dtype == torch.float16
    figures = json.loads((demo / "figures.json").read_text())
    assert figures["arms"]["full"]["accuracy"] == full["accuracy"]
    tokens = figures["kept"]["tokens"]
    assert len(tokens) == len(figures["kept"]["heads"]) and all(kept[0] == 1.0 and len(kept) == 2 for kept in tokens)
    assert set(figures["guessing"]) == {"all", *example.KINDS} and 0 < figures["guessing"]["all"] < 100


def test_the_demo_model_is_small() -> None:
    model = example.demo_model(len(tile_tokenizer()))
    assert sum(parameter.numel() for parameter in model.parameters()) < 5.5e6
