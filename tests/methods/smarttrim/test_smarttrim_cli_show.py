"""`vleff smarttrim show`: pictures say what the records say."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from methods.smarttrim.picture_questions import write_questions, write_trimmed, write_vilt
from methods.smarttrim.test_smarttrim_cli import FAST, call, fail, run
from PIL import Image

from vleff import smarttrim
from vleff.data.image_questions import read_image_questions
from vleff.smarttrim.evaluation import Arm, Evaluation
from vleff.smarttrim.recipes import load
from vleff.smarttrim.results_files import accuracy_and_speed, read_evaluations
from vleff.smarttrim.shown import shown_questions

pictures = pytest.importorskip("vleff.smarttrim.pictures")
pytest.importorskip("matplotlib", reason="figures are optional")

PAGE = Path(__file__).parents[3] / "docs" / "smarttrim.md"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    return write_trimmed(folder / "trimmed", write_vilt(folder / "vilt")), write_questions(folder)


def evaluation(trimmed: tuple[float, float], seconds: dict[int, float]) -> Evaluation:
    """With a FLOP ratio and an accuracy, and times relative to the full model's."""
    full = Arm(60.0, 1.0, dict.fromkeys(seconds, 1.0))
    arms = {"full": full, "trimmed": Arm(trimmed[1], trimmed[0], seconds), "random": Arm(40.0, trimmed[0], seconds)}
    tokens, heads = [[9.0, 9.0], [3.0, 5.0]], [[2.0, 2.0], [1.0, 2.0]]
    return Evaluation("m", 2, arms, {"text": 9.0}, {"text": tokens}, {"text: own": heads}, {"text: own": 2})


def test_all_is_drawn_and_nothing_overwritten(world: tuple[Path, Path], tmp_path: Path) -> None:
    model, questions = world
    run("evaluate", model, questions, "--batch", 0, "--output", tmp_path / "results" / "one.json")
    command = ("show", model, questions, "--output", tmp_path / "shown", "--shown", 3, "--batch", 0)
    run(*command, "--results", tmp_path / "results")
    sizes = {}
    for name in ("kept-patches.png", "kept-distribution.png", "accuracy-speed.png"):
        with Image.open(tmp_path / "shown" / name) as image:
            sizes[name] = image.size
            assert len(image.convert("L").getcolors()) > 20
    assert sizes["kept-patches.png"][1] > sizes["accuracy-speed.png"][1] / 2
    before = {path: path.read_bytes() for path in (tmp_path / "shown").iterdir()}
    assert "exists already" in fail(*command)
    assert before == {path: path.read_bytes() for path in (tmp_path / "shown").iterdir()}
    assert "expected results (*.json), got none" in fail(
        *command[:4], tmp_path / "other", "--results", tmp_path / "shown"
    )


def test_the_page_needs_nothing_else_and_says_what_was_kept(world: tuple[Path, Path], tmp_path: Path) -> None:
    from vleff.smarttrim.page import write_page

    model, collate = load(world[0])
    shown = shown_questions(model, read_image_questions(world[1])[:3], collate, batch=2)
    shown[0].words[1] = "</script>&"
    write_page(shown, tmp_path / "index.html", "a <b>model</b>", table=[["", "accuracy"], ["full", "<60"]], notes="n")
    text = (tmp_path / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"']?(?:http|//|\.)", text)
    assert "a &lt;b&gt;model" in text and "<td>&lt;60</td>" in text
    assert text.count("</script>") == 2
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    for found, one in zip(data, shown, strict=True):
        assert found["words"] == one.words
        for name in ("patches", "text", "heads"):
            layers = getattr(one.kept, name)
            assert found[name] == ["".join(map(str, layer.flatten().astype(int))) for layer in layers]
        assert (found["rows"], found["columns"]) == one.kept.patches.shape[1:]


def test_shown_questions_are_the_models(world: tuple[Path, Path]) -> None:
    model, collate = load(world[0])
    questions = read_image_questions(world[1])[:5]
    shown = shown_questions(model, questions, collate, batch=2)
    inputs = dict(collate(questions))
    del inputs["labels"]
    with torch.inference_mode():
        answers = model(**inputs).logits.argmax(-1)
        with smarttrim.running(model, "full"):
            full = model(**inputs).logits.argmax(-1)
    assert [one.answer for one in shown] == [model.config.id2label[int(one)] for one in answers]
    assert [one.full_answer for one in shown] == [model.config.id2label[int(one)] for one in full]
    assert [one.right for one in shown] == [one.answer for one in questions]
    for one, question in zip(shown, questions, strict=True):
        assert np.array_equal(one.image, np.asarray(question.open()))
        assert len(one.words) == one.kept.text.shape[1] and one.words[0] == "[CLS]"
        assert one.kept.patches.shape == (2, 8, 8) and one.kept.patches[0].all()
    assert any(not one.kept.patches[1].all() for one in shown)


def test_dropped_patches_fade_and_kept_ones_stay() -> None:
    image = np.random.default_rng(0).integers(0, 200, (4, 6, 3), np.uint8)
    kept = np.array([[True, False, True], [False, False, True]])
    hidden = pictures.with_dropped_hidden(image, 2, kept)
    mask = kept.repeat(2, 0).repeat(2, 1)
    assert np.array_equal(hidden[mask], image[mask])
    assert hidden[~mask].min() > 200 and len(np.unique(hidden[~mask])) > 5


def test_six_layers_at_most_are_drawn() -> None:
    assert pictures.shown_layers(2) == [0, 1]
    assert pictures.shown_layers(6) == list(range(6))
    layers = pictures.shown_layers(12)
    assert len(layers) == 6 and layers[0] == 0 and layers[-1] == 11


def test_points_of_the_curve(tmp_path: Path) -> None:
    both = [evaluation((0.5, 58.0), {1: 0.9, 8: 0.5}), evaluation((0.25, 50.0), {8: 0.4})]
    points, label = accuracy_and_speed(both)
    assert label == "times faster than full, measured, batch 8"
    assert points["trimmed"] == [(2.0, 58.0, 2), (2.5, 50.0, 2)] and points["full"] == [(1.0, 60.0, 2)] * 2
    untimed, label = accuracy_and_speed([both[0], evaluation((0.25, 50.0), {})])
    assert label == "times fewer multiply-adds in the layers" and [point[0] for point in untimed["random"]] == [2, 4]
    for number, one in enumerate(both):
        one.save(tmp_path / f"{number}.json")
    assert read_evaluations([tmp_path]) == both and read_evaluations([tmp_path / "1.json"]) == both[1:]
    (tmp_path / "2.json").write_text("{}")
    with pytest.raises(ValueError, match=r"2\.json: expected results of `vleff smarttrim evaluate`"):
        read_evaluations([tmp_path])


def test_commands_of_the_page_run(world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.S)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [command[:3] for command in commands[-1:]] == [["vleff", "demo"]] and len(commands) == 6
    monkeypatch.chdir(tmp_path)
    for path in world[1].parent.glob("*.*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(world[1], tmp_path / name)
    (tmp_path / "MODEL").symlink_to(world[0].parent / "vilt")
    for _, *arguments in commands[:-1]:
        quick = {"train": FAST, "evaluate": ("--batch", 2), "show": ("--batch", 2)}
        status, output = call(*arguments, *quick.get(arguments[1], ()))
        assert status == 0, output
    made = {path.name for path in (tmp_path / "shown").iterdir()}
    assert made == set(re.findall(r"^\| `(\S+\.\w+)` ", PAGE.read_text(), re.M))


def test_without_matplotlib_it_says_so_at_once(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vleff.smarttrim.showing.find_spec", lambda name: None)
    for command in (("smarttrim", "show", *world), ("demo",)):
        status, output = call(*command, "--output", tmp_path / "shown")
        assert status == 2 and "pip install matplotlib" in output
    assert not (tmp_path / "shown").exists()
