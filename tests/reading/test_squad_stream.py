"""Articles one by one, whatever their size, and what is malformed reported by id and left out."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading.excerpt import EXCERPT

from vleff.data import squad_stream
from vleff.data.squad import Paragraph, question_json, read_squad
from vleff.data.squad_stream import BadRecord, stream_articles

GOOD = {"id": "g", "question": "From what?", "answers": [{"text": "beans", "answer_start": 24}]}
CONTEXT = "Coffee is brewed — from beans."


def stream(path: Path) -> tuple[list[Paragraph], list[BadRecord]]:
    bad: list[BadRecord] = []
    paragraphs = [paragraph for article in stream_articles(path, bad.append) for paragraph in article.paragraphs]
    return paragraphs, bad


def write(path: Path, articles: Any, **more: Any) -> Path:
    path.write_text(json.dumps({**more, "data": articles, "after": {"data": [1]}}), encoding="utf-8")
    return path


def article(*questions: Any, context: Any = CONTEXT) -> dict[str, Any]:
    return {"title": "Café", "paragraphs": [{"context": context, "qas": list(questions)}]}


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_reads_what_read_squad_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk: int) -> None:
    monkeypatch.setattr(squad_stream, "_CHUNK", chunk)
    content = json.loads(EXCERPT.read_text())
    content["data"] = content["data"][: 3 if chunk == 1 else None]
    packed = tmp_path / "squad.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(content).encode()))
    found, bad = stream(packed)
    assert found == read_squad(packed) and not bad and len(found) >= 3


def test_questions_are_written_as_they_were_read() -> None:
    for one in json.loads(EXCERPT.read_text())["data"][0]["paragraphs"][0]["qas"]:
        written = question_json(squad_stream.parse_question(one))
        assert written == {"is_impossible": False, **{name: one[name] for name in ("id", "question", "answers")}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None, "question": ""}, "expected text"),
        ({"question": 7}, "expected text"),
        ({"question": "half a pair: \ud800"}, "expected text"),
        ({"id": "\udfff"}, "expected text"),
        ({"answers": [{"text": "beans", "answer_start": float("inf")}]}, "cannot convert"),
        ({"answers": "beans"}, "indices"),
        ({"answers": None}, "not iterable"),
        ({"answers": [{"text": "beans"}]}, "'answer_start' is missing"),
        ({"answers": [{"text": "beans", "answer_start": "x"}]}, "invalid literal"),
        ({"answers": [{"text": "beans", "answer_start": 23}]}, "answer 'beans' is not at character 23"),
        ({"answers": [{"text": "beans", "answer_start": -6}]}, "answer 'beans' is not at character -6"),
        ({"answers": [{"text": "", "answer_start": 3}]}, "an answer is ''"),
        ({"answers": []}, "has no answer"),
        ({"is_impossible": True}, "is_impossible, but has answers"),
        (
            {"answers": [], "is_impossible": True, "plausible_answers": [{"text": "tea", "answer_start": 0}]},
            "answer 'tea' is not at character 0",
        ),
    ],
)
def test_malformed_questions_are_left_out(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    after = {**GOOD, "id": "after"}
    path = write(tmp_path / "squad.json", [article(GOOD, {**GOOD, "id": "bad", **change}, after)])
    (paragraph,), (bad,) = stream(path)
    assert [question.id for question in paragraph.questions] == ["g", "after"]
    id = str(change.get("id", "bad")).encode(errors="backslashreplace").decode()
    assert bad.id == id and bad.place == "article 0, paragraph 0, question 1"
    assert reason in bad.reason and reason in str(bad)


def test_malformed_paragraphs_and_articles_are_left_out(tmp_path: Path) -> None:
    good = article(GOOD)
    missing = copy.deepcopy(good)
    del missing["paragraphs"][0]["context"]
    again = article(GOOD, GOOD, "text")
    broken = [7, None, {"title": "A"}, {"title": 1, "paragraphs": []}, missing, article(GOOD, context=3), again]
    broken += [{"title": "\ud800", "paragraphs": []}, article(GOOD, context="\udfff Coffee")]
    paragraphs, bad = stream(write(tmp_path / "squad.json", [good, *broken, good]))
    assert [paragraph.questions for paragraph in paragraphs] == [paragraphs[0].questions] * 3
    assert [one.place.split(",")[0] for one in bad] == [f"article {n}" for n in (1, 2, 3, 4, 5, 6, 7, 7, 8, 9)]
    assert bad[-4].id == "g" and "has this id" in bad[-4].reason


def test_an_article_that_is_not_json_is_left_out(tmp_path: Path) -> None:
    good = json.dumps(article(GOOD))
    deep = f'{{"title": {"[" * 100_000}{"]" * 100_000}}}'
    (tmp_path / "squad.json").write_text(f'{{"data": [{good}, {{"title": nonsense}}, {deep}, {good}]}}')
    paragraphs, bad = stream(tmp_path / "squad.json")
    assert len(paragraphs) == 2 and [one.place for one in bad] == ["article 1", "article 2"]


@pytest.mark.parametrize(
    ("content", "found", "message"),
    [
        (b"", 0, 'no list "data"'),
        (b'{"version": "data", "x": [{"data": []}]}', 0, 'no list "data"'),
        (b'{"data": {"a": 1}}', 0, 'no list "data"'),
        (json.dumps({"data": [article(GOOD)] * 2}).encode()[:-9], 1, 'the end of the file within "data"'),
        (b'{"data": [\xff]}', 0, "codec can't decode"),
    ],
)
def test_files_without_end_or_data(tmp_path: Path, content: bytes, found: int, message: str) -> None:
    (tmp_path / "squad.json").write_bytes(content)
    came = 0
    with pytest.raises(ValueError, match=rf"squad\.json: expected JSON in SQuAD format .*{message}"):
        for _ in stream_articles(tmp_path / "squad.json", print):
            came += 1
    assert came == found
    with pytest.raises(FileNotFoundError):
        next(stream_articles(tmp_path / "none.json", print))


def test_a_broken_archive(tmp_path: Path) -> None:
    (tmp_path / "squad.json.gz").write_bytes(gzip.compress(json.dumps({"data": [article(GOOD)]}).encode())[:-12])
    with pytest.raises(ValueError, match=r"expected JSON in SQuAD format"):
        stream(tmp_path / "squad.json.gz")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('abc"\\[]{},: \n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"]}', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=4), st.dictionaries(st.sampled_from(["a", "version", "z"]), JSON, max_size=2))
def test_elements_are_those_of_json(elements: list[Any], more: dict[str, Any]) -> None:
    text = json.dumps({**more, "data": elements, "tail": [1]}, indent=1)
    for size in (1, 3, len(text)):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert [json.loads(one) for one in squad_stream._elements(chunks)] == elements
