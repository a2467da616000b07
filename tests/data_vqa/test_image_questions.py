"""Questions about images, read from JSON and from data sets, and batches of them."""

import json
from pathlib import Path

import pytest
from methods.dide.small_models import picture, preprocessor
from PIL import Image

from vleff.data.image_questions import (
    ImageQuestion,
    ImageQuestionCollator,
    frequent_answers,
    load_image_questions,
    questions_of,
    read_image_questions,
)

ROW = {"image": "pictures/a.png", "question": "what is it?", "answer": "a square"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.new("L", (20, 10), 77).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "bad.png").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_of_a_file(name: str, folder: Path) -> None:
    rows = [ROW, {**ROW, "answer": None}, {"image": str(folder / "pictures" / "a.png"), "question": "ça va?"}]
    text = "\n\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    (folder / name).write_text(text, encoding="utf-8")
    questions = load_image_questions(folder / name)
    assert [one.question for one in questions] == ["what is it?", "what is it?", "ça va?"]
    assert [one.answer for one in questions] == ["a square", None, None]
    for one in questions:
        image = one.open()
        assert image.mode == "RGB" and image.size == (20, 10) and image.getpixel((3, 3)) == (77, 77, 77)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", ValueError, "expected JSON"),
        ("{}", ValueError, "expected a list of rows, got dict"),
        ("[]", ValueError, "expected at least one question, got none"),
        ("[3]", ValueError, "row 0: expected an object with image, question, answer, got int"),
        (json.dumps([ROW, {"image": "x"}]), ValueError, "row 1: 'question' is missing; there are 'image'"),
        (json.dumps([{**ROW, "question": " "}]), ValueError, "row 0: expected text as 'question', got ' '"),
        (json.dumps([{**ROW, "answer": 3}]), ValueError, "row 0: expected text as 'answer', got 3"),
        (json.dumps([{**ROW, "image": 3}]), ValueError, "row 0: expected the path of a file as 'image', got 3"),
        (json.dumps([ROW, {**ROW, "image": "b.png"}]), FileNotFoundError, "row 1: there is no image .*b.png"),
    ],
)
def test_bad_rows(content: str, error: type[Exception], message: str, folder: Path) -> None:
    (folder / "rows.json").write_text(content)
    with pytest.raises(error, match=message):
        read_image_questions(folder / "rows.json")


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_image_questions(folder / "none.json")
    with pytest.raises(ValueError, match=r"bad\.png: expected an image"):
        ImageQuestion(folder / "pictures" / "bad.png", "what?").open()
    (folder / "rows.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="expected JSON"):
        read_image_questions(folder / "rows.json")


def test_rows_of_a_data_set() -> None:
    questions = questions_of([{"image": picture("red", 1), "question": "what colour?", "answer": "red"}], "pictures")
    assert questions[0].open().size == picture("red", 1).size


def test_frequent_answers() -> None:
    questions = [ImageQuestion("a.png", "?", answer) for answer in ("b", "c", "a", "c", None, "b", "d")]
    assert frequent_answers(questions) == ["b", "c", "a", "d"]
    assert frequent_answers(questions, 2) == ["b", "c"]


def test_batches() -> None:
    colours = ("red", "green", "blue")
    some = [ImageQuestion(picture(colour, 1), "what colour is it", colour) for colour in colours]
    batch = ImageQuestionCollator(preprocessor(), {"red": 1, "green": 0})(
        [*some, ImageQuestion(picture("red", 2), "what")]
    )
    assert batch["labels"].tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 4
