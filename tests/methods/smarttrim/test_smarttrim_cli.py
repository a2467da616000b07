"""`vleff smarttrim` from a checkpoint and questions in files to figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.smarttrim.picture_questions import COUNT, write_questions, write_trimmed, write_vilt
from safetensors.torch import load_file
from typer.testing import CliRunner

from vleff.cli import app
from vleff.data.image_questions import ImageQuestionCollator, read_image_questions
from vleff.smarttrim.answering import answer
from vleff.smarttrim.evaluation import Evaluation
from vleff.smarttrim.recipes import load

FAST = ("--epochs", 1, "--batch", 5, "--learning-rate", 1e-3, "--save-steps", 1)
STEPS = 3


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def run(*arguments: object) -> str:
    status, output = call("smarttrim", *arguments)
    assert status == 0, output
    return output


def fail(*arguments: object) -> str:
    status, output = call("smarttrim", *arguments)
    assert status == 2, output
    return output


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vilt(tmp_path_factory.mktemp("vilt"))


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory, vilt: Path) -> Path:
    return write_trimmed(tmp_path_factory.mktemp("models") / "trimmed", vilt)


def test_training_is_resumed_and_overwrites_nothing(
    vilt: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "vleff smarttrim evaluate" in run("train", vilt, questions, "--output", tmp_path / "whole", *FAST)
    made, count = ImageQuestionCollator.__call__, 0

    def interrupted(self: ImageQuestionCollator, some: Any) -> Any:
        nonlocal count
        count += 1
        if count == STEPS:
            raise KeyboardInterrupt
        return made(self, some)

    command = ("smarttrim", "train", vilt, questions, "--output", tmp_path / "parts", *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(ImageQuestionCollator, "__call__", interrupted)
        status, output = call(*command)
    assert status == 130 and "goes on from the last checkpoint" in output
    assert "was made with seed = 0, now it is 1" in fail(*command[1:], "--seed", 1)
    assert call(*command)[0] == 0
    for name in ("model.safetensors", "smarttrim.safetensors"):
        whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    before = (tmp_path / "parts" / "model.safetensors").stat().st_mtime_ns
    assert "holds a trimmed model already" in fail(*command[1:])
    assert (tmp_path / "parts" / "model.safetensors").stat().st_mtime_ns == before


def test_the_control_drops_as_much_as_the_trimmed_model(
    vilt: Path, trimmed: Path, questions: Path, tmp_path: Path
) -> None:
    run("train", vilt, questions, "--output", tmp_path / "random", "--random-like", trimmed, *FAST)
    evaluated = ("evaluate", trimmed, questions, "--random", tmp_path / "random", "--output", tmp_path / "found.json")
    output = run(*evaluated, "--batch", "1,4", "--timed", 4)
    assert "trained for it" in output and "not trained for it" not in output
    found = Evaluation.load(tmp_path / "found.json")
    assert found.arms["random"].flop_ratio == pytest.approx(found.arms["trimmed"].flop_ratio, abs=0.05)
    assert list(found.arms["full"].seconds) == [1, 4]
    assert "exists already" in fail(*evaluated)


def test_evaluation_tells_accuracies_and_what_was_kept(trimmed: Path, questions: Path, tmp_path: Path) -> None:
    output = run("evaluate", trimmed, questions, "--output", tmp_path / "new" / "found.json", "--batch", 0)
    found = Evaluation.load(tmp_path / "new" / "found.json")
    model, collate = load(trimmed)
    asked = read_image_questions(questions)
    for arm, mode in (("full", "full"), ("trimmed", "gathered")):
        assert found.arms[arm].accuracy == answer(model, asked, collate, mode=mode, quiet=True).accuracy
        assert f"{found.arms[arm].accuracy:.1f} ±" in output
    kept = answer(model, asked, collate, quiet=True).kept
    assert kept is not None and 0 < kept.flop_ratio < 0.95
    assert found.arms["trimmed"].flop_ratio == kept.flop_ratio and found.arms["full"].flop_ratio == 1
    assert list(found.tokens.values()) == [[layer.tokens for layer in kept.layers]]
    assert list(found.heads.values()) == [[layer.heads["own"] for layer in kept.layers]]
    assert "not trained for it" in output and "Times" not in output
    assert found.questions == COUNT and not found.arms["full"].seconds


def test_answers_that_a_model_lacks(vilt: Path, trimmed: Path, questions: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"answer": "unheard of"} for line in questions.read_text().splitlines()]
    file = questions.parent / "others.json"
    file.write_text(json.dumps(rows))
    assert "100.0 % of the questions have an answer that the model cannot give" in run(
        "evaluate", trimmed, file, "--batch", 0
    )
    run("train", vilt, file, "--output", tmp_path / "new", *FAST)
    assert load(tmp_path / "new")[0].config.id2label == {0: "unheard of"}
    unknown = questions.parent / "unknown.json"
    unknown.write_text(json.dumps([row | {"answer": None} for row in rows]))
    assert "expected some with answers" in fail("train", vilt, unknown, "--output", tmp_path / "none")


def test_errors_say_what_was_expected(vilt: Path, trimmed: Path, questions: Path, tmp_path: Path) -> None:
    assert "holds no trimmed model" in fail("evaluate", vilt, questions)
    assert "random-like`, got one with trimmers" in fail("evaluate", trimmed, questions, "--random", trimmed)
    assert "batch: expected whole numbers" in fail("evaluate", trimmed, questions, "--batch", "two")
    assert "missing.json" in fail("evaluate", trimmed, tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("[{")
    assert "expected JSON" in fail("train", vilt, tmp_path / "broken.json", "--output", tmp_path / "new")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "bert" / name).write_text((vilt / name).read_text())
    assert "expected a ViLT" in fail("train", tmp_path / "bert", questions, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_explain_tells_what_trimmers_keep_and_gain(trimmed: Path, vilt: Path, questions: Path) -> None:
    status, output = call("explain", trimmed)
    assert status == 0 and "did not run yet" in output
    status, output = call("explain", trimmed, "--data", questions)
    assert status == 0, output
    assert "heads" in output and "predicted gain of the layers" in output and "measured gain of the model" in output
    assert "holds no trimmed model" in call("explain", vilt, "--data", questions)[1]
