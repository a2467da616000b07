"""A SQuAD file becomes a valid SQuAD 2.0 file with more questions: what they are, what is reported, what is refused."""

import copy
import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from methods.unanswerable.corpus import paragraphs, squad2
from methods.unanswerable.own_generators import Negator, augmented, generated, negator, run
from reading.excerpt import EXCERPT, make_tokenizer, small_reader
from transformers import AutoTokenizer

from vleff.data.squad import Question, read_squad
from vleff.data.squad_stream import BadRecord, stream_articles
from vleff.unanswerable.answerability import AnswerabilityReader
from vleff.unanswerable.augmenting import AugmentationSettings
from vleff.unanswerable.generation import GenerationSettings
from vleff.unanswerable.generators import GeneratorRecipe, fingerprint, generator_recipe
from vleff.unanswerable.sources import Candidate, GenerationSource

pytestmark = pytest.mark.usefixtures("one_thread")

ANSWERABLE = sum(bool(question.answers) for paragraph in read_squad(EXCERPT) for question in paragraph.questions)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader that learned nothing: its margins are what its weights give."""
    folder = tmp_path_factory.mktemp("reader")
    small_reader().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("version", ["1.1", "2.0", "2.0, compressed"])
def test_a_valid_squad_2_file_comes_out(tmp_path: Path, version: str) -> None:
    before = read_squad(EXCERPT) if version == "1.1" else paragraphs()
    data = EXCERPT
    if version != "1.1":
        data = tmp_path / "squad.json.gz"
        data.write_bytes(gzip.compress(json.dumps(squad2(before)).encode()))
    report = run(data, tmp_path / "job", candidates=3, kept=2)
    assert report.candidates == {"kept": 2 * ANSWERABLE, "surplus": ANSWERABLE} and report.left_out == 0
    assert (report.paragraphs, report.answerable) == (len(before), ANSWERABLE)
    assert report.questions == sum(len(paragraph.questions) for paragraph in before)
    assert f"{2 * ANSWERABLE} unanswerable questions for {ANSWERABLE} answerable ones" in str(report)

    after = augmented(tmp_path / "job")
    assert json.loads((tmp_path / "job/augmented.json").read_text())["version"] == "v2.0"
    assert list(stream_articles(tmp_path / "job/augmented.json", pytest.fail))
    assert [(one.title, one.context) for one in after] == [(one.title, one.context) for one in before]
    ids = [question.id for paragraph in after for question in paragraph.questions]
    assert len(ids) == len(set(ids))
    records = {record["id"]: record for record in generated(tmp_path / "job")}
    assert len(records) == 2 * ANSWERABLE
    for old, new in zip(before, after, strict=True):
        assert new.questions[: len(old.questions)] == old.questions
        sources = {question.id: question for question in old.questions}
        for question in new.questions[len(old.questions) :]:
            provenance = records[question.id]["provenance"]
            source = sources[provenance["source"]]
            number = round(-3 * provenance["score"])
            assert question == Question(
                question.id, f"{source.text}, not {number}".strip(), (), source.answers[:1], True
            )
            assert provenance == {
                "generator": "negator",
                "version": "1",
                "source": source.id,
                "score": round(-number / 3, 4),
            }
    assert (tmp_path / "job/left-out.jsonl").read_text() == ""


def test_ids_are_stable_and_depend_on_the_generator(tmp_path: Path) -> None:
    def ids(folder: str, recipe: GeneratorRecipe, **options: Any) -> list[str]:
        run(EXCERPT, tmp_path / folder, recipe, **options)
        return [record["id"] for record in generated(tmp_path / folder)]

    one = ids("one", negator())
    assert set(one) < set(ids("more", negator(), candidates=2, kept=2, batch=5))
    assert not set(one) & set(ids("other", GeneratorRecipe("negator", "2", Negator)))
    assert one[0] == "61fc1763918dcea55b54a3e4"


class Fixed:
    """Gives each source the same texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        return [[Candidate(text, float(place)) for place, text in enumerate(self.texts)][:count] for _ in sources]


def test_candidates_that_say_nothing_new_are_counted_and_left_out(tmp_path: Path) -> None:
    content = {"title": "T", "paragraphs": [{"context": "Tea is hot.", "qas": []}]}
    questions = [("1", "What is hot?"), ("2", "What is so hot?")]
    answers = [{"text": "Tea", "answer_start": 0}]
    content["paragraphs"] = [
        {"context": "Tea is hot.", "qas": [{"id": id, "question": text, "answers": answers} for id, text in questions]}
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [content]}))
    texts = (" ", "what is  hot ?", "What is so hot?", "What is cold?", " What is warm? ")
    recipe = GeneratorRecipe("fixed", "1", lambda: Fixed(*texts))
    report = run(tmp_path / "squad.json", tmp_path / "job", recipe, candidates=9, kept=9)
    # the second source meets what the first one left
    assert report.candidates == {"kept": 2, "empty": 2, "unchanged": 2, "repeated": 4}
    # the best score first
    assert [record["question"] for record in generated(tmp_path / "job")] == ["What is warm?", "What is cold?"]


def test_a_reader_filters(tmp_path: Path, reader: Path) -> None:
    everything = run(EXCERPT, tmp_path / "all", reader=str(reader), threshold=-100.0, max_length=96, stride=32)
    assert everything.candidates == {"kept": ANSWERABLE}
    records = {record["id"]: record for record in generated(tmp_path / "all")}
    margins = {id: record["provenance"]["no_answer_margin"] for id, record in records.items()}
    contexts = {question.id: one.context for one in augmented(tmp_path / "all") for question in one.questions}
    judge = AnswerabilityReader(small_reader(), AutoTokenizer.from_pretrained(reader), max_length=96, stride=32)
    for id, record in list(records.items())[:20]:
        (margin,) = judge.null_margins([(record["question"], contexts[id])])
        assert margin == pytest.approx(margins[id], abs=2e-4)

    ordered = sorted(margins.values())
    gaps = [(high - low, (high + low) / 2) for low, high in itertools.pairwise(ordered[10:-10])]
    _, middle = max(gaps)  # the margins in the records are rounded
    some = run(EXCERPT, tmp_path / "some", reader=str(reader), threshold=middle, max_length=96, stride=32)
    kept = [record["id"] for record in generated(tmp_path / "some")]
    assert set(kept) == {id for id, margin in margins.items() if margin > middle}
    assert some.candidates == {"kept": len(kept), "answerable": ANSWERABLE - len(kept)} and 0 < len(kept) < ANSWERABLE


def test_null_margins_are_those_of_the_logits(reader: Path) -> None:
    tokenizer, plain = AutoTokenizer.from_pretrained(reader), small_reader().eval()
    judge = AnswerabilityReader.from_pretrained(reader, batch=3, max_length=96, stride=32)
    questions = [(question.text, one.context) for one in read_squad(EXCERPT)[:6] for question in one.questions]
    margins = judge.null_margins(questions)
    assert judge.null_margins([]) == []
    for (question, context), margin in list(zip(questions, margins, strict=True))[::4]:
        encoded = tokenizer(
            question.strip(), context, return_tensors="pt", truncation="only_second", max_length=96, stride=32,
            return_overflowing_tokens=True, padding=True,
        )  # fmt: skip
        nulls, spans = [], []
        for row in range(len(encoded["input_ids"])):
            inputs = {name: encoded[name][row : row + 1] for name in ("input_ids", "token_type_ids", "attention_mask")}
            outputs = plain(**inputs)
            start, end = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
            inside = [place for place, part in enumerate(encoded.sequence_ids(row)) if part == 1]
            nulls.append(start[0] + end[0])
            spans += [start[a] + end[b] for a in inside for b in inside if a <= b < a + 30]
        assert margin == pytest.approx(min(nulls) - max(spans), abs=1e-4)


def test_what_is_no_reader_is_refused(tmp_path: Path) -> None:
    small_reader().base_model.save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"expected a checkpoint for question answering, but .* lacks qa_outputs.bias"):
        run(EXCERPT, tmp_path / "job", reader=str(tmp_path / "encoder"))
    with pytest.raises(OSError, match="none"):
        AnswerabilityReader.from_pretrained(tmp_path / "none")


def test_malformed_records_and_failures_are_reported_by_id_and_stop_nothing(tmp_path: Path, reader: Path) -> None:
    content = squad2(paragraphs())
    whole = copy.deepcopy(content)
    first = content["data"][0]["paragraphs"][0]["qas"]
    first.insert(1, {"id": "no text"})
    first.insert(0, {"id": "misplaced", "question": "What?", "answers": [{"text": "x", "answer_start": 10**6}]})
    content["data"].insert(1, {"title": "no paragraphs"})
    content["data"][3]["paragraphs"].insert(0, {"context": "", "qas": []})
    chosen = content["data"][4]["paragraphs"][0]["qas"]
    hated = next(one for one in chosen if one["answers"])
    hated["question"] += " HATED"
    endless = next(one for one in chosen if one["answers"] and one is not hated)
    endless["question"] = " ".join(["what"] * 200)
    (tmp_path / "bad.json").write_text(json.dumps(content))
    (tmp_path / "good.json").write_text(json.dumps(whole))
    bad: list[BadRecord] = []
    options = {"reader": str(reader), "threshold": -100.0, "max_length": 96, "stride": 32}
    report = run(tmp_path / "bad.json", tmp_path / "job", negator(bad="HATED"), bad=bad, **options)
    ids = ["misplaced", "no text", "", "", hated["id"], endless["id"]]
    lines = [json.loads(line) for line in (tmp_path / "job/left-out.jsonl").read_text().splitlines()]
    assert [one.id for one in bad] == ids[:4] and sorted(line["id"] for line in lines) == sorted(ids)
    assert report.left_out == 6
    assert report.candidates == {"kept": ANSWERABLE - 2, "failed": 1}
    reasons = {line["id"]: f"{line['place']}: {line['reason']}" for line in lines}
    assert reasons[hated["id"]] == "article 4: RuntimeError: a question has 'HATED' in it"
    assert (
        reasons[endless["id"]].startswith("article 4: ValueError: question ") and "at most 55" in reasons[endless["id"]]
    )
    # all other questions are what they are without the bad ones
    run(tmp_path / "good.json", tmp_path / "all", **options)
    others = [one for one in generated(tmp_path / "all") if one["provenance"]["source"] not in ids]
    assert generated(tmp_path / "job") == others and len(others) == ANSWERABLE - 2


def test_scores_that_are_no_numbers_make_no_invalid_json(tmp_path: Path) -> None:
    class Strange:
        def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
            return [[Candidate("Who \x00 \u2028 asks?", score)] for _, score in zip(sources, (nan, inf), strict=False)]

    nan, inf = float("nan"), float("inf")
    run(EXCERPT, tmp_path / "job", GeneratorRecipe("strange", "1", Strange), batch=1)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "job/augmented.json").read_text(), parse_constant=refuse)
    assert {record["provenance"]["score"] for record in generated(tmp_path / "job")} == {None}
    assert list(stream_articles(tmp_path / "job/augmented.json", pytest.fail))


def test_a_generator_that_fails_on_everything_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 questions in a row failed, the last: a question has '' in it"):
        run(EXCERPT, tmp_path / "job", negator(bad=""))
    recipe = GeneratorRecipe("none", "1", lambda: _Nothing())
    with pytest.raises(ValueError, match="20 questions in a row failed, the last: expected a result for each of 1"):
        run(EXCERPT, tmp_path / "nothing", recipe)


class _Nothing:
    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        return []


def test_another_job_and_foreign_files_are_refused(tmp_path: Path, reader: Path) -> None:
    job = tmp_path / "job"
    run(EXCERPT, job)
    before = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
    assert run(EXCERPT, job, batch=7).candidates["kept"] == ANSWERABLE  # complete: nothing is done
    for recipe, options, message in (
        (negator(), {"candidates": 2}, "was made with candidates = 1, now it is 2"),
        (negator(), {"reader": str(reader)}, "was made with reader = None, now it is"),
        (GeneratorRecipe("negator", "2", Negator), {}, "was made with generator_version = '1', now it is '2'"),
        (generator_recipe("swap"), {}, "was made with generator = 'negator', now it is 'swap'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(EXCERPT, job, recipe, **options)
    (tmp_path / "other.json").write_text(json.dumps(squad2(paragraphs())))
    with pytest.raises(ValueError, match="was made with input = "):
        run(tmp_path / "other.json", job)
    assert {path: path.read_bytes() for path in job.rglob("*") if path.is_file()} == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "augmented.json").write_text("mine")
    with pytest.raises(FileExistsError, match="mine exists already, and not as an augmentation job's folder"):
        run(EXCERPT, mine)
    assert [path.name for path in mine.iterdir()] == ["augmented.json"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new/settings.json.1.part").touch()  # another process of the same job is about to write its settings
    run(EXCERPT, tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "none.json", tmp_path / "newer")
    with pytest.raises(FileNotFoundError, match="expected 'swap', 'small' or the folder of a trained generator, got"):
        generator_recipe(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates: expected at least 1, got 0"),
        ({"batch": 0}, "batch: expected at least 1"),
        ({"kept": 2}, "kept: expected at most 1, the candidates, got 2"),
    ],
)
def test_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentationSettings(**options)


def test_a_file_that_ends_within_stops_before_anything(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(EXCERPT.read_text()[:-9])
    with pytest.raises(ValueError, match="the end of the file within"):
        run(tmp_path / "squad.json", tmp_path / "job")
    assert not (tmp_path / "job/augmented.json").exists() and not (tmp_path / "job/shards").exists()


def test_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "model").write_text("weights")
    first = fingerprint(tmp_path / "a")
    assert len(first) == 12 and first == fingerprint(tmp_path / "b")
    (tmp_path / "b/model").write_text("Weights")
    assert fingerprint(tmp_path / "b") != first and fingerprint("someone/model") == "someone/model"
    recipe = generator_recipe(tmp_path / "a")
    assert recipe.name == "a" and recipe.version.startswith(f"{first}-")
    assert generator_recipe(tmp_path / "a", GenerationSettings(batch=3)).version == recipe.version
    other = generator_recipe(tmp_path / "a", GenerationSettings(beams=3)).version
    assert other.startswith(f"{first}-") and other != recipe.version
