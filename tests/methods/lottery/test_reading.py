"""The whole method by its commands, with a small reader and real questions."""

import json
from pathlib import Path

import pytest
import transformers
from reading.excerpt import EXCERPT, make_tokenizer, small_reader
from typer.testing import CliRunner

from vleff.cli import app
from vleff.data.squad import load_squad, paragraphs_of
from vleff.lottery import from_pretrained, masked_layers
from vleff.lottery.reading import ReadingSettings, find, load_reader

RUNNER = CliRunner()
WINDOWS = ["--max-length", "96", "--stride", "32"]


def run(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["lottery", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def fail(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["lottery", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_reader().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("found") / "subnetwork"
    run("find", checkpoint, EXCERPT, "--output", folder, "--source-epochs", 1, "--pruning-epochs", 1,
        "--learning-rate", 1e-3, *WINDOWS)  # fmt: skip
    return folder


def test_every_stage_leaves_its_result(found: Path) -> None:
    scores = json.loads((found / "heads.json").read_text())
    assert len(scores["scores"]) == 2 and scores["steps"] == 20 and scores["examples"] > 0
    assert (found / "heads.png").stat().st_size > 1000
    pruned = transformers.BertForQuestionAnswering.from_pretrained(found / "found")
    weights = [layer.attention.self.query.weight for layer in pruned.bert.encoder.layer]
    assert all(0.3 < float((weight == 0).float().mean()) < 0.95 for weight in weights)
    assert load_reader(found)[0].config.hidden_size == 64


def test_tuned_evaluated_and_exported(found: Path, tmp_path: Path) -> None:
    run("tune", found, EXCERPT, "--output", tmp_path / "tuned", "--examples", 16, "--steps", 5, *WINDOWS)
    model = from_pretrained(tmp_path / "tuned")
    assert len(masked_layers(model)) == 12
    printed = run("evaluate", tmp_path / "tuned", EXCERPT, "--examples", 20, *WINDOWS)
    assert printed.startswith("EM ") and printed.endswith("20 questions")
    run("export", tmp_path / "tuned", tmp_path / "dense")
    assert run("evaluate", tmp_path / "dense", EXCERPT, "--examples", 20, *WINDOWS).endswith(printed)
    message = fail("tune", found, EXCERPT, "--output", tmp_path / "tuned", "--steps", 5, *WINDOWS)
    assert "holds a subnetwork already" in message
    assert "exists already" in fail("export", tmp_path / "tuned", tmp_path / "dense")


def test_a_frozen_remainder_is_that_of_the_source(found: Path, tmp_path: Path) -> None:
    run("tune", found, EXCERPT, "--output", tmp_path, "--examples", 8, "--steps", 2, "--remainder", "frozen", *WINDOWS)
    source = transformers.BertForQuestionAnswering.from_pretrained(found / "source")
    for name, layer in masked_layers(from_pretrained(tmp_path)).items():
        same = layer.weight == source.get_submodule(name).weight
        assert float(same.float().mean()) > 0.6


def test_the_same_command_goes_on_and_another_is_refused(checkpoint: Path, found: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in found.rglob("*") if path.is_file()}
    settings = ReadingSettings(source_epochs=1, pruning_epochs=1, learning_rate=1e-3, max_length=96, stride=32)
    find(checkpoint, load_squad(EXCERPT), found, settings)
    assert {path: path.stat().st_mtime_ns for path in found.rglob("*") if path.is_file()} == before
    message = fail("find", checkpoint, EXCERPT, "--output", found, "--sparsity", 0.9, *WINDOWS)
    assert "was made with sparsity = 0.7, now it is 0.9" in message


def test_bad_input(checkpoint: Path, tmp_path: Path) -> None:
    assert "No such file" in fail("find", checkpoint, tmp_path / "none.json", "--output", tmp_path / "x")
    (tmp_path / "bad.json").write_text('{"data": [{"title": "A"}]}')
    assert "article 0 is not in SQuAD format" in fail("evaluate", checkpoint, tmp_path / "bad.json")
    assert "at most" in fail("evaluate", checkpoint, EXCERPT, "--examples", 100000)
    assert "holds no subnetwork" in fail("export", tmp_path, tmp_path / "dense")
    assert "Unrecognized model" in fail("evaluate", tmp_path, EXCERPT)


def test_rows_of_a_data_set() -> None:
    rows = [
        {
            "id": 1,
            "context": "tea",
            "question": "What?",
            "answers": {"text": ["tea"], "answer_start": [0]},
            "title": "T",
        },
        {"id": 2, "context": "tea", "question": "Why?", "answers": {"text": [], "answer_start": []}, "title": "T"},
    ]
    (paragraph,) = paragraphs_of(rows, "drinks")
    assert paragraph.title == "T" and [question.id for question in paragraph.questions] == ["1", "2"]
    assert paragraph.questions[1].is_impossible and not paragraph.questions[0].is_impossible
    with pytest.raises(ValueError, match="drinks: row 0 is not in SQuAD format: 'question' is missing"):
        paragraphs_of([{"id": 1, "answers": {"text": [], "answer_start": []}, "context": ""}], "drinks")
