"""The study from end to end, with a small model and a few steps."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import unanswerable_study as example
from methods.unanswerable.corpus import paragraphs, write_squad2
from reading.excerpt import make_tokenizer, small_reader

from vleff.data.span_features import SpanExample
from vleff.data.squad import Answer


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> Iterator[None]:
    """Each training collects garbage, of which imports leave much."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_all_units_and_the_tables(tmp_path: Path) -> None:
    small_reader().base_model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    plan = example.Plan(
        asked=12, reading_steps=2, steps=2, batch=4, length=96, stride=32, epochs=0.5, width=16, candidates=2,
        seeds=(0, 1), workers=1,
    )  # fmt: skip
    data = write_squad2(tmp_path / "squad2.json", paragraphs()[:16])
    reading = write_squad2(tmp_path / "squad1.json", paragraphs()[4:20])
    study = example.Study(data, reading, str(tmp_path / "model"), tmp_path / "work", tmp_path / "results", plan)
    assert not {one.title for one in study.asked} & {one.title for one in study.learnt + study.reading}
    assert 4 < len(study.reading) < 16
    study.run()
    arms = [arm.replace(" ", "-") for arm in example.ARMS]
    names = {"generator", *(f"questions-{arm}" for arm in arms[1:])}
    names |= {f"reader-{arm}-{seed}" for arm in arms for seed in (0, 1)}
    assert {path.stem for path in (tmp_path / "results").glob("*.json")} == names
    one = json.loads((tmp_path / "results/reader-swaps-0.json").read_text())
    learnt = sum(len(paragraph.questions) for paragraph in study.learnt)
    kept = json.loads((tmp_path / "results/questions-swaps.json").read_text())["candidates"]["kept"]
    assert (one["learnt"], one["asked"]) == (learnt + kept, 12) and kept > 5
    assert all(0 <= one[metric] <= 100 for metric in example.METRICS) and one["best_f1"] >= one["f1"]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    (tmp_path / "results/reader-generated-1.json").unlink()
    study.run()  # only what is missing
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert before.keys() == after.keys() and sum(before[path] != after[path] for path in before) == 1

    lines = example.tables(tmp_path / "results").splitlines()
    assert sum(" ± " in line and "| 2 |" in line for line in lines) == 4
    assert sum(line.startswith(("| people", "| copy", "| swaps", "| generated")) for line in lines) == 4 + 3
    assert example.tables(tmp_path) == ""


def test_a_question_has_one_window_that_of_its_answer(tmp_path: Path) -> None:
    small_reader().base_model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    data = write_squad2(tmp_path / "squad2.json", paragraphs())
    plan = example.Plan(length=64, stride=16)
    study = example.Study(data, None, str(tmp_path / "model"), tmp_path / "work", tmp_path / "results", plan)
    questions = [question for paragraph in study.learnt for question in paragraph.questions]
    windows = study.squad2_windows(study.learnt)
    assert [questions[window.example] for window in windows] == questions
    contexts = [one.context for one in study.learnt for _ in one.questions]
    first_ones = 0
    for window in windows:
        question, context = questions[window.example], contexts[window.example]
        assert bool(window.start) == bool(question.answers)
        answer = (question.answers or question.plausible_answers)[0]
        shown = window.offsets[window.offsets[:, 0] >= 0]
        assert shown[0, 0] <= answer.start and answer.start + len(answer.text) <= shown[-1, 1]
        if window.start:
            assert context[window.offsets[window.start, 0] : window.offsets[window.end, 1]].startswith(answer.text)
        first_ones += int(shown[0, 0]) == 0
    assert 0 < first_ones < len(windows)


def test_scores_at_0_and_at_the_best_threshold() -> None:
    examples = [
        SpanExample("a", "", "", (Answer("tea", 0),)),
        SpanExample("b", "", "", (Answer("milk", 0),)),
        SpanExample("c", "", "", ()),
        SpanExample("d", "", "", ()),
    ]
    answers = {"a": "tea", "b": "hot milk", "c": "x", "d": "y"}
    found = example.scores(answers, [0.5, -1.0, 1.0, -0.5], examples)
    f1 = 100 * 2 / 3
    assert found["f1"] == pytest.approx((0 + f1 + 100 + 0) / 4)
    assert found["has_answer_f1"] == pytest.approx(f1 / 2) and found["no_answer_f1"] == 50
    assert (found["exact_match"], found["has_answer_exact_match"]) == (25, 0)
    assert found["answered_f1"] == pytest.approx((100 + f1) / 2)
    assert found["told_apart"] == 75  # of the four pairs all but a and d
    assert example.told_apart(np.array([1.0, 1.0]), np.array([True, False])) == 50
    # answering b only is as good as it gets: a would cost d
    thresholds = [-2.0, -0.7, 0.0, 0.7, 2.0]
    each = [example.scores(answers, list(np.array([0.5, -1.0, 1.0, -0.5]) - t), examples)["f1"] for t in thresholds]
    assert found["best_f1"] == pytest.approx(max(each)) and max(each) > found["f1"]
