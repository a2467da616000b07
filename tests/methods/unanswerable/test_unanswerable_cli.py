"""The command `vleff unanswerable`, from files to files."""

import json
from pathlib import Path

import pytest
from methods.unanswerable.corpus import paragraphs, squad2
from typer.testing import CliRunner, Result

from vleff.cli import app
from vleff.unanswerable.pair_files import load_pairs


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["unanswerable", *map(str, arguments)])


def test_pairs_split_by_article(tmp_path: Path) -> None:
    content = squad2(paragraphs())
    for number in range(25):
        content["data"][0]["paragraphs"][0]["qas"].append({"id": f"bad {number}"})
    (tmp_path / "squad.json").write_text(json.dumps(content))
    result = run("pairs", tmp_path / "squad.json", "--output", tmp_path / "pairs", "--test", 0.2)
    assert result.exit_code == 0, result.output
    assert "train: " in result.output and "pairs that differ by one word" in result.output
    assert "(id bad 19)" in result.stderr and "(id bad 20)" not in result.stderr
    assert "25 malformed records" in result.stderr
    titles = []
    for name in ("train", "development", "test"):
        pairs = load_pairs(tmp_path / "pairs" / f"{name}.jsonl", pytest.fail)
        titles.append({pair.title for pair in pairs})
    assert all(titles) and sum(map(len, titles)) == len(set().union(*titles))
    again = run("pairs", tmp_path / "squad.json", "--output", tmp_path / "pairs")
    assert again.exit_code == 2 and "exists already" in again.stderr


@pytest.mark.parametrize("content", ["nonsense", '{"data": 3}'])
def test_pairs_of_what_is_no_squad_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "squad.json").write_text(content)
    result = run("pairs", tmp_path / "squad.json", "--output", tmp_path / "pairs")
    assert result.exit_code == 2 and "expected JSON in SQuAD format" in result.stderr
    assert not (tmp_path / "pairs").exists()
