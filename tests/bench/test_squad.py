import gzip
import json
from pathlib import Path

import pytest

from vleff.data.squad import Answer, Paragraph, Question, read_squad

CONTENT = {
    "version": "v2.0",
    "data": [
        {
            "title": "Café",
            "paragraphs": [
                {
                    "context": "Coffee is brewed — from beans.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "From what?",
                            "answers": [{"text": "beans", "answer_start": 24}],
                        },
                        {
                            "id": "2",
                            "question": "By whom?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "Coffee", "answer_start": 0}],
                        },
                    ],
                }
            ],
        }
    ],
}
QUESTIONS = (
    Question("1", "From what?", (Answer("beans", 24),)),
    Question("2", "By whom?", (), (Answer("Coffee", 0),), True),
)


@pytest.mark.parametrize("name", ["squad.json", "squad.json.gz"])
def test_reads_both_versions_plain_and_compressed(tmp_path: Path, name: str) -> None:
    content = json.dumps(CONTENT, ensure_ascii=False).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_squad(tmp_path / name) == [Paragraph("Café", "Coffee is brewed — from beans.", QUESTIONS)]


def test_answers_of_a_real_excerpt_are_where_they_say() -> None:
    paragraphs = read_squad(Path(__file__).parents[1] / "data" / "squad_excerpt.json")
    answers = [(p.context, answer) for p in paragraphs for question in p.questions for answer in question.answers]
    assert len(answers) > 40
    for context, answer in answers:
        assert context[answer.start :].startswith(answer.text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "expected JSON in SQuAD format"),
        (b"\xff\xfe\xfa", "expected JSON in SQuAD format"),
        (b"[1]", 'expected an object with a list "data"'),
        (b'{"data": [{"title": "a"}]}', "article 0 .* 'paragraphs' is missing"),
        (b'{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}', '"context" is 3, expected text'),
        (b'{"data": [7]}', "article 0"),
        (b'{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1"}]}]}]}', "'question' is missing"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as failure:
        read_squad(file)
    assert str(file) in str(failure.value)


def test_truncated_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.json.gz"
    file.write_bytes(gzip.compress(json.dumps(CONTENT).encode())[:-20])
    with pytest.raises(ValueError, match="expected JSON in SQuAD format"):
        read_squad(file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        read_squad(tmp_path / "nowhere.json")
