"""The examples of docs/unanswerable.md run in their order, on small models; its tables name what there is."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.unanswerable.generators import items, pairs, small_bert, sources, tokenizer
from methods.unanswerable.test_seq2seq import t5

from vleff import unanswerable
from vleff.unanswerable.pair_files import save_pairs

PAGE = (Path(__file__).parents[3] / "docs" / "unanswerable.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of width 32 that are trained for two steps."""
    build, from_encoder = unanswerable.PairToSequence.build, unanswerable.PairToSequence.from_encoder
    made: Callable[..., Any] = unanswerable.GeneratorTraining
    sizes = {"width": 32, "heads": 2}
    monkeypatch.setattr(unanswerable.PairToSequence, "build", lambda *some: build(*some, **sizes))
    monkeypatch.setattr(unanswerable.PairToSequence, "from_encoder", lambda *some: from_encoder(*some, **sizes))
    monkeypatch.setattr(unanswerable, "GeneratorTraining", lambda **some: made(**{**some, "steps": 2, "batch": 4}))


def test_the_examples_run_in_their_order(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    save_pairs(pairs()[:12], tmp_path / "pairs" / "train.jsonl")
    small_bert().save_pretrained(tmp_path / "minilm")
    tokenizer().save_pretrained(tmp_path / "minilm")
    names: dict[str, Any] = {
        "minilm": tmp_path / "minilm",
        "seq2seq_model": t5(),
        "source_words": items(1)[0][0],
        "sources": sources(3),
    }
    assert len(EXAMPLES) == PAGE.count("```python") == 5
    training, pretrained, t5_example, looping, generating = EXAMPLES
    exec(training, names)
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"-\d+\.\d\d \S", line)]
    assert len(lines) == 3
    exec(pretrained, names)
    assert names["model"].config.encoder == "transformer"
    exec(looping, names)
    assert all(torch.isfinite(parameter.grad).all() for parameter in names["model"].decoder.parameters())
    exec(t5_example, names)
    assert isinstance(unanswerable.load_generator("generator-t5"), unanswerable.Seq2SeqGenerator)
    exec(generating, names)
    assert len(names["questions"]) == 3 and all(names["questions"])


@pytest.mark.parametrize("described", ["settings", "config"])
def test_the_tables_have_all_fields_and_their_defaults(described: str) -> None:
    header = {"settings": "| setting | default | |", "config": "| field | default | |"}[described]
    table = PAGE.split(header)[1].split("\n\n")[0]
    found: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`.*?`) \| (.*?) \|", table, re.M):
        fields, values = re.findall(r"`(\w+)`", names), re.sub('[`"]', "", defaults).split(", ")
        found |= dict(zip(fields, values, strict=True))
    if described == "settings":
        assert found == {name: str(value) for name, value in asdict(unanswerable.GenerationSettings()).items()}
    else:
        config = unanswerable.PairToSequenceConfig()
        assert found == {name: str(getattr(config, name)) for name in found}
        own = unanswerable.PairToSequenceConfig.__annotations__.keys()
        of_vocabulary = {"vocabulary_size", "generated_words", "character_numbers"}
        assert own - found.keys() == of_vocabulary | {"sub_configs", "encoder_config"}


def test_public_names_are_there() -> None:
    for name in unanswerable.__all__:
        assert name in dir(unanswerable) and getattr(unanswerable, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unanswerable.nothing
