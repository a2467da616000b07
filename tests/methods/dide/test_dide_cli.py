"""`vleff dide` from a fusion encoder to a search."""

import json
import sys
from pathlib import Path

import pytest
import torch
from methods.dide.small_models import COLOURS, TEACHERS, VILT, picture, preprocessor, saved, shaken, teacher
from transformers import ViltConfig, ViltForQuestionAnswering
from typer.testing import CliRunner

import vleff
from vleff.cli import app
from vleff.dide import DualEncoder
from vleff.dide.examples import Example, ExampleCollator, read_examples

FAST = ("--batch", 8, "--learning-rate", 2e-3)


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["dide", *map(str, arguments)], env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def run(*arguments: object) -> str:
    status, output = call(*arguments)
    assert status == 0, output
    return output


def fail(*arguments: object) -> str:
    status, output = call(*arguments)
    assert status == 2, output
    return output


def write_examples(folder: Path, task: str, count: int = 16) -> Path:
    """Pictures and what there is to say about them."""
    (folder / "pictures").mkdir(parents=True)
    colours = list(COLOURS)
    for number in range(count):
        picture(colours[number % 4], number).save(folder / "pictures" / f"{number:02d}.png")
    lines = []
    for number in range(count):
        colour, path = colours[number % 4], f"pictures/{number:02d}.png"
        if task == "vqa":
            lines.append({"text": "what colour is it", "image": path, "label": {colour: 1.0, "unknown": 0.3}})
        elif task == "nlvr2":
            other = f"pictures/{(number + 1) % count:02d}.png"
            lines.append({"text": f"a {colour} picture", "image": [path, other], "label": number % 2 == 0})
        else:
            lines.append({"text": f"a {colour} picture", "image": path, "label": colour})
    file = folder / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def fusion_that_knows_colours(folder: Path) -> Path:
    """A fusion encoder, trained in a few seconds."""
    torch.manual_seed(0)
    names = dict(enumerate(COLOURS))
    model = vleff.accelerate(ViltForQuestionAnswering(ViltConfig(**VILT, id2label=names)))
    made, numbers = preprocessor(), {colour: number for number, colour in names.items()}
    collate = ExampleCollator(made, "vqa", numbers)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(40):
        some = [
            Example("what colour is it", (picture(colour, step * 16 + n),), colour)
            for n, colour in enumerate([*COLOURS] * 4)
        ]
        loss = model.train()(**collate(some)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    return saved(vleff.restore(model).eval(), folder)


def test_taught_encoded_evaluated(tmp_path: Path) -> None:
    examples = write_examples(tmp_path / "data", "vqa", 32)
    fusion = fusion_that_knows_colours(tmp_path / "fusion")
    model = tmp_path / "model"
    arguments = ("train", fusion, examples, "--task", "vqa", "--output", model, "--epochs", 12, *FAST)
    assert f"The dual encoder is in {model}" in run(*arguments)
    assert DualEncoder.from_pretrained(model).config.id2label == dict(enumerate(COLOURS))
    accuracy = run("evaluate", model, examples)
    assert accuracy == "accuracy 100.0, 32 examples"  # it never saw a label
    assert "holds a dual encoder already" in fail(*arguments)
    printed = run("encode", model, tmp_path / "data" / "pictures", "--store", tmp_path / "store")
    assert printed.endswith("holds 32 representations")
    assert "expected a model for retrieval, got one for vqa" in fail("search", model, tmp_path / "store", "red")
    (tmp_path / "questions.txt").write_text("what colour is it\n\nis it red\nwhat colour is it\n")
    texts = ("encode", model, tmp_path / "questions.txt", "--modality", "text", "--store", tmp_path / "texts")
    assert run(*texts).endswith("holds 2 representations")


def test_search_and_recalls(tmp_path: Path) -> None:
    examples = write_examples(tmp_path / "data", "retrieval")
    fusion = saved(teacher("retrieval"), tmp_path / "fusion")
    model = tmp_path / "model"
    weights = ("--soft-weight", 0, "--attention-weight", 0, "--hard-label-weight", 1)
    run("train", fusion, examples, "--task", "retrieval", "--output", model, "--epochs", 30, *weights, *FAST)
    printed = run("evaluate", model, examples)
    assert "text to image R@1 100.0" in printed and "image to text R@10 100.0, 16 examples" in printed
    run("encode", model, tmp_path / "data" / "pictures", "--store", tmp_path / "store")
    found = run("search", model, tmp_path / "store", "a blue picture", "--k", 3)
    assert "a blue picture" in found
    assert sum(f"{number:02d}.png" in found for number in (2, 6, 10, 14)) == 3


@pytest.mark.parametrize("task", ["nlvr2", "snli-ve"])
def test_other_tasks_are_trained(task: str, tmp_path: Path) -> None:
    examples = write_examples(tmp_path / "data", "nlvr2" if task == "nlvr2" else "retrieval")
    config = {} if task == "nlvr2" else {"id2label": dict(enumerate(COLOURS)), "num_labels": 4}
    model_class, arguments = TEACHERS[task]
    fusion = saved(shaken(model_class(ViltConfig(**VILT | arguments | config))), tmp_path / "fusion")
    run("train", fusion, examples, "--task", task, "--output", tmp_path / "model", "--epochs", 1, *FAST)
    assert "accuracy" in run("evaluate", tmp_path / "model", examples)


def test_an_interrupted_training_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    examples = write_examples(tmp_path / "data", "vqa")
    fusion = saved(teacher("vqa"), tmp_path / "fusion")
    settings = ("--task", "vqa", "--epochs", 3, "--save-steps", 1, *FAST)
    run("train", fusion, examples, "--output", tmp_path / "model", *settings)
    (tmp_path / "model" / "config.json").unlink()  # as if it had been interrupted before the end
    run("train", fusion, examples, "--output", tmp_path / "model", *settings)
    (tmp_path / "model" / "config.json").unlink()
    message = fail("train", fusion, examples, "--output", tmp_path / "model", *settings, "--soft-weight", 0.5)
    assert "was made with soft_weight = 1.0, now it is 0.5" in message


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bad.jsonl"
    for content, message in (
        ('{"text": "a"}', 'row 0: expected an object with "text" and "image"'),
        ('{"text": "a", "image": ["1", "2", "3"]}', "row 0: expected a text and one or two images"),
        ("{", "line 1: expected JSON"),
        ("", "expected at least one example, got none"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_examples(file)
    with pytest.raises(FileNotFoundError):
        read_examples(tmp_path / "nothing.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    with pytest.raises(ImportError, match="pip install datasets"):
        read_examples("someone/pictures")
    one = Example("a", (picture("red"),), "violet")
    with pytest.raises(ValueError, match="'a': expected 2 images for nlvr2, got 1"):
        ExampleCollator(preprocessor(), "nlvr2", {})([one])
    with pytest.raises(ValueError, match="label: expected one of red, blue or its number, got 'violet'"):
        ExampleCollator(preprocessor(), "snli-ve", {"red": 0, "blue": 1})([one])
    assert "task: expected one of vqa, nlvr2" in fail("train", "x", file, "--task", "x", "--output", tmp_path / "x")
    assert "expected images" in fail("encode", tmp_path, tmp_path, "--store", tmp_path / "store")
