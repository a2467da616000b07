"""The examples and commands of docs/augmentation.md run as they stand."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from methods.unanswerable.corpus import paragraphs, write_squad2
from reading.excerpt import make_tokenizer, small_reader
from typer.testing import CliRunner

from vleff.cli import app
from vleff.data.squad import read_squad
from vleff.unanswerable.antonyms import ANTONYMS
from vleff.unanswerable.evaluation import HEADINGS
from vleff.unanswerable.pair_files import save_pairs
from vleff.unanswerable.pairs import build_pairs

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (Path(__file__).parents[3] / "docs" / "augmentation.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("vleff unanswerable")]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small reader, and the current folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    small_reader().save_pretrained("READER")
    make_tokenizer().save_pretrained("READER")
    for name in ("SQUAD.json", "squad.json", "SQUAD2.json"):
        write_squad2(tmp_path / name, paragraphs()[: None if name == "SQUAD2.json" else 6])
    return "READER"


def test_the_examples_run_in_their_order(reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 4
    save_pairs(build_pairs(paragraphs())[:10], "pairs.jsonl")
    names: dict[str, Any] = {"reader": reader}
    augmenting, own, swapping, evaluating = EXAMPLES
    exec(augmenting, names)
    assert str(names["report"]) in capsys.readouterr().out and sum(names["report"].candidates.values()) > 10
    exec(own, names)
    texts = [question.text for one in read_squad("negated/augmented.json") for question in one.questions]
    assert names["report"].candidates["kept"] > 0 and any(" is never " in text for text in texts)
    exec(swapping, names)
    promised = re.findall(r"'(.*?)'", swapping.splitlines()[-1])
    assert [candidate.text for candidate in names["candidates"][0]] == promised
    exec(evaluating, names)
    assert len(capsys.readouterr().out.splitlines()[-1].split()) == 3


def test_the_commands_run_in_their_order(reader: str) -> None:
    few = {"train": "--epochs 1 --width 16", "augment": "--workers 1 --beams 2"}
    assert [command.split()[2] for command in COMMANDS] == ["pairs", "train", "generate", "evaluate", "augment"]
    for command in COMMANDS:
        words = shlex.split(command)
        result = CliRunner().invoke(app, [*words[1:], *few.get(words[2], "").split()])
        assert result.exit_code == 0, f"{command}: {result.output}"
    assert json.loads(Path("scores.json").read_text())["generator"]
    listed = re.findall(r"^\| `([\w.-]+)` \|", PAGE, re.M)
    assert {path.name for path in Path("augmented").iterdir()} == {*listed, "lock"}
    shutil.rmtree("augmented/shards")
    again = CliRunner().invoke(app, [*shlex.split(COMMANDS[-1])[1:], *few["augment"].split()])
    assert again.exit_code == 0 and "augmented.json: " in again.output


def test_figures_and_names() -> None:
    (record,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.S))
    assert set(record) == {"id", "question", "answers", "is_impossible", "plausible_answers", "provenance"}
    pairs = {frozenset(pair) for pair in ANTONYMS.items()}
    assert f"a list of {round(len(pairs), -1)} pairs" in PAGE
    described = re.findall(r"[\w-]+", " ".join(re.findall(r"^\| ([A-Zrc][^`|]*) \| ", PAGE, re.M)))
    assert set(HEADINGS.values()) == set(described)
