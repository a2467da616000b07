"""The command `vleff unanswerable`, from files to files."""

import json
from pathlib import Path

import pytest
import torch
from methods.unanswerable.corpus import paragraphs, squad2, write_squad2
from reading.excerpt import EXCERPT, make_tokenizer, small_reader
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

from vleff.cli import app
from vleff.data.squad_stream import stream_articles
from vleff.unanswerable import generators, load_generator
from vleff.unanswerable.pair_files import load_pairs, save_pairs
from vleff.unanswerable.pairs import build_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    small_reader().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_generate_from_one_question() -> None:
    asked = ("--question", "Who won the first war?", "--paragraph", "In 1066 William won the first war.")
    result = run("generate", "swap", *asked, "--answer", "William")
    assert result.exit_code == 0 and result.output.splitlines() == [
        "   0.000  Who lost the first war?",
        "  -1.000  Who won the last war?",
        "  -2.000  Who won the first peace?",
    ]
    assert len(run("generate", "swap", *asked, "--answer", "William", "--count", 1).output.splitlines()) == 1
    for answer, message in (("Harold", "answer: expected a part of the paragraph, got 'Harold'"), ("", "got ''")):
        result = run("generate", "swap", *asked, "--answer", answer)
        assert result.exit_code == 2 and message in result.stderr
    result = run("generate", "swap", "--question", "Who?", "--paragraph", "William.", "--answer", "William")
    assert "Nothing: the generator found no unanswerable question" in result.output
    result = run("generate", "swaps", *asked, "--answer", "William")
    expected = "expected 'swap', 'small' or the folder of a trained generator, got swaps"
    assert result.exit_code == 2 and expected in result.stderr


def test_the_generator_that_comes_with_vleff() -> None:
    paragraph = "In 1066 William of Normandy won the Battle of Hastings against King Harold."
    asked = (
        "--question",
        "Who won the Battle of Hastings?",
        "--paragraph",
        paragraph,
        "--answer",
        "William of Normandy",
    )
    result = run("generate", "small", *asked)
    assert result.exit_code == 0, result.output
    written = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert 1 <= len(written) <= 3 and all(float(score) < 0 for score, _ in written)
    texts = [text for _, text in written]
    assert len(set(texts)) == len(texts) and all("hastings" in text.lower() for text in texts)
    folder = Path(generators.__file__).parent / "data" / "small"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    weights = load_generator(folder).parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_augment_with_a_reader(tmp_path: Path, reader: Path) -> None:
    content = squad2(paragraphs())
    content["data"][0]["paragraphs"][0]["qas"].append({"id": "bad one"})
    (tmp_path / "squad.json").write_text(json.dumps(content))
    arguments = ("augment", "swap", tmp_path / "squad.json", "--output", tmp_path / "job", "--reader", reader)
    arguments += ("--threshold", -0.9, "--max-length", 96, "--stride", 32, "--workers", 1)
    result = run(*arguments, "--candidates", 2, "--kept", 2)
    assert result.exit_code == 0, result.output
    assert "Left out: article 0, paragraph 0, question" in result.stderr and "(id bad one)" in result.stderr
    output = " ".join(result.output.split())
    assert "augmented.json: " in output and " answerable, " in output and "1 left out" in output
    assert "What was left out is listed in" in output
    assert list(stream_articles(tmp_path / "job/augmented.json", pytest.fail))
    before = (tmp_path / "job/augmented.json").read_bytes()
    again = run(*arguments, "--candidates", 2, "--kept", 2)
    assert again.exit_code == 0 and "augmented.json: " in again.output
    other = run(*arguments)
    assert other.exit_code == 2 and "was made with candidates = 2, now it is 1" in other.stderr
    assert (tmp_path / "job/augmented.json").read_bytes() == before
    wrong = run("augment", "swap", tmp_path / "squad.json", "--output", tmp_path / "new", "--kept", 2)
    assert wrong.exit_code == 2 and "kept: expected at most 1" in wrong.stderr and not (tmp_path / "new").exists()


def test_evaluate_prints_and_saves_scores(tmp_path: Path, reader: Path) -> None:
    save_pairs(build_pairs(paragraphs())[:30], tmp_path / "pairs.jsonl")
    arguments = ("evaluate", "swap", tmp_path / "pairs.jsonl", "--examples", 20, "--output", tmp_path / "scores.json")
    result = run(*arguments, "--reader", reader)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert lines[0].strip() == "20 pairs" and lines[1].split()[:2] == ["BLEU-3", "BLEU-4"]
    assert [line.split()[0] for line in lines if line.startswith(("people", "copy", "swaps"))] == [
        *("people", "copy", "swaps")
    ]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["people"]["bleu_4"] == pytest.approx(100) and 0 <= scores["swaps"]["unanswerable"] <= 100
    again = run(*arguments)
    assert again.exit_code == 2 and "scores.json exists already" in again.stderr
    few = run("evaluate", "swap", tmp_path / "pairs.jsonl", "--examples", 31)
    assert few.exit_code == 2 and "expected at most 30" in few.stderr


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_train_generate_augment_evaluate(tmp_path: Path, kind: str) -> None:
    pairs = build_pairs(paragraphs())
    save_pairs(pairs[:40], tmp_path / "train.jsonl")
    save_pairs(pairs[-6:], tmp_path / "test.jsonl")
    arguments = ["train", tmp_path / "train.jsonl", "--output", tmp_path / "model", "--epochs", 1, "--width", 16]
    if kind == "transformer":
        tokenizer = make_tokenizer()
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "encoder")
        tokenizer.save_pretrained(tmp_path / "encoder")
        arguments += ["--kind", kind, "--model", tmp_path / "encoder"]
    mixed = run(*arguments, "--held-out", tmp_path / "train.jsonl")
    assert mixed.exit_code == 2 and "split by article" in mixed.stderr and not (tmp_path / "model").exists()
    swaps_of = "--swaps-of", write_squad2(tmp_path / "tested.json", paragraphs()[-6:])
    mixed = run(*arguments, *swaps_of, "--held-out", tmp_path / "test.jsonl")
    assert mixed.exit_code == 2 and "split by article" in mixed.stderr and not (tmp_path / "model").exists()
    if kind == "lstm":
        arguments += ["--swaps-of", write_squad2(tmp_path / "more.json", paragraphs()[:6]), "--swap-epochs", 1]
    result = run(*arguments, "--held-out", tmp_path / "test.jsonl")
    assert (tmp_path / "model/easy-training").exists() == (kind == "lstm")
    assert result.exit_code == 0, result.output
    assert "The generator is in" in result.output
    again = run(*arguments)
    assert again.exit_code == 2 and "model holds a generator already" in again.stderr
    asked = ("--question", "Who won the war?", "--paragraph", "William won the war.", "--answer", "William")
    result = run("generate", tmp_path / "model", *asked, "--beams", 2)
    assert result.exit_code == 0 and 1 <= len(result.stdout.splitlines()) <= 3
    result = run("evaluate", tmp_path / "model", tmp_path / "test.jsonl")
    assert result.exit_code == 0 and "model" in result.output and "swaps" in result.output
    (tmp_path / "few").mkdir()
    few = write_squad2(tmp_path / "few/squad.json", paragraphs()[:2])
    arguments = ["augment", tmp_path / "model", few, "--output", tmp_path / "job", "--beams", 2, "--workers", 1]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert list(stream_articles(tmp_path / "job/augmented.json", pytest.fail))
    other = run(*arguments[:-3], 3, "--workers", 1)
    assert other.exit_code == 2 and "generator_version" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "rnn"), "kind: expected one of lstm, transformer, seq2seq, got 'rnn'"),
        (("--kind", "seq2seq"), "model: expected a checkpoint to start from for 'seq2seq', got None"),
        (("--model", "somewhere"), "model: expected none for 'lstm', got 'somewhere'"),
    ],
)
def test_train_refuses(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = run("train", EXCERPT, "--output", tmp_path / "model", *options)
    assert result.exit_code == 2 and message in result.stderr and not (tmp_path / "model").exists()
