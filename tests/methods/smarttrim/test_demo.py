"""`vleff demo`: what ships, and that it runs without a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_vqa.small_clothes import write_small_clothes
from safetensors.torch import load_file
from typer.testing import CliRunner

from vleff import demo
from vleff.cli import app
from vleff.data.fashion_mnist import read_fashion_mnist
from vleff.data.tile_vqa import ANSWERS, TileVqa
from vleff.demo import run as running
from vleff.demo.held_out import read_held_out, write_held_out
from vleff.smarttrim import recipes
from vleff.smarttrim.answering import answer

DATA = Path(demo.__file__).parent / "data"
MOST_BYTES, MOST_PARAMETERS = 12_000_000, 5_500_000


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < MOST_BYTES
    for name in ("trimmed", "random"):
        weights = load_file(DATA / name / "model.safetensors")
        trimmers = load_file(DATA / name / "smarttrim.safetensors")
        assert all(value.dtype == torch.float16 for value in [*weights.values(), *trimmers.values()])
        assert sum(value.numel() for value in [*weights.values(), *trimmers.values()]) < MOST_PARAMETERS
    assert "MIT" in (DATA / "LICENSE").read_text()


def test_held_out_questions_come_back(tmp_path: Path) -> None:
    questions = list(TileVqa(read_fashion_mnist(write_small_clothes(tmp_path / "clothes")), 23))
    write_held_out(questions, tmp_path)
    found = read_held_out(tmp_path)
    assert len(found) == 23
    for one, wanted in zip(found, questions, strict=True):
        assert (one.question, one.answer) == (wanted.question, wanted.answer)
        assert np.array_equal(np.asarray(one.open()), wanted.grid.picture)


def test_those_that_ship_are_hundreds_and_of_all_kinds() -> None:
    questions = read_held_out(DATA)
    assert len(questions) >= 200
    assert {one.answer for one in questions} == set(ANSWERS)
    pictures = {np.asarray(one.open()).tobytes() for one in questions}
    assert len(pictures) == len(questions)


def test_the_demo_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise AssertionError("the demo looked for a network")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr(running, "BATCHES", (4,))
    monkeypatch.setattr(running, "_TIMED", 8)
    command = ["demo", "--output", str(tmp_path / "shown"), "--count", "12"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    figures = json.loads((DATA / "figures.json").read_text())
    assert "all " + " ".join(f"{arm['accuracy']:.1f}" for arm in figures["arms"].values()) in output
    assert "answers 12 questions" in output and f"trained for {figures['steps']} steps" in output
    made = {path.name for path in (tmp_path / "shown").iterdir()}
    assert made == {"kept-patches.png", "kept-distribution.png", "accuracy-speed.png", "index.html"}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "exists already" in " ".join(again.output.split())
    assert CliRunner().invoke(app, ["demo", "--count", "0"]).exit_code == 2


def test_what_ships_answers_better_than_guessing() -> None:
    questions = read_held_out(DATA)
    guessing = json.loads((DATA / "figures.json").read_text())["guessing"]["all"]
    model, collate = recipes.load(DATA / "trimmed")
    trimmed = answer(model, questions, collate, quiet=True)
    random = answer(recipes.load_random(DATA / "random"), questions, collate, quiet=True)
    assert trimmed.kept is not None and random.kept is not None
    assert trimmed.kept.flop_ratio < 0.65
    assert random.kept.flop_ratio == pytest.approx(trimmed.kept.flop_ratio, abs=0.05)
    full = answer(model, questions, collate, mode="full", quiet=True)
    assert trimmed.accuracy > 2 * guessing and trimmed.accuracy > full.accuracy - 2
    assert trimmed.accuracy > random.accuracy + 5
