"""Jobs that are killed, shared by processes, or large: nothing is lost, doubled, or done twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from methods.unanswerable.own_generators import Mortal, negator, run
from methods.unanswerable.test_result_shards import killed_after
from reading.excerpt import EXCERPT, make_tokenizer, small_reader

from vleff.data.squad import read_squad
from vleff.data.squad_stream import stream_articles
from vleff.unanswerable import augmentation
from vleff.unanswerable.augmentation import AugmentationJob
from vleff.unanswerable.augmentation_processes import default_workers
from vleff.unanswerable.augmenting import AugmentationSettings
from vleff.unanswerable.generators import GeneratorRecipe, generator_recipe
from vleff.unanswerable.ray_augmentation import augment_with_ray
from vleff.unanswerable.result_shards import read_numbers

pytestmark = pytest.mark.usefixtures("one_thread")

PARAGRAPHS = len(read_squad(EXCERPT))
KILLS = 12


def calls(log: Path) -> Counter[str]:
    """How often the generator was asked for each source."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line for line in lines if line.endswith("]"))  # a kill may have cut one off


def test_killed_at_random_moments_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "SECONDS_BETWEEN_COMMITS", 0.0)
    run(EXCERPT, tmp_path / "whole", negator(log=tmp_path / "whole.log"))
    once = calls(tmp_path / "whole.log")
    assert set(once.values()) == {1}
    generator, log = random.Random(0), tmp_path / "killed.log"
    recipe = negator(log=log, seconds=0.005)
    reached = []
    for _ in range(KILLS):
        job = AugmentationJob(EXCERPT, tmp_path / "killed", recipe, AugmentationSettings(batch=3))
        job.scan(pytest.fail)

        def work(say: Callable[[int], object], job: AugmentationJob = job) -> None:
            say(0)
            job.run_part(0, 1, "part-00000", say)
            job.finish()

        with contextlib.suppress(AssertionError):  # it may have finished: then nothing was killed
            killed_after(generator.uniform(0, 0.25), work)
        numbers = list(read_numbers(tmp_path / "killed/shards"))
        assert numbers == list(range(len(numbers)))
        reached.append(len(numbers))
    assert reached == sorted(reached) and len(set(reached)) > 3
    run(EXCERPT, tmp_path / "killed", recipe, batch=2)
    for name in ("augmented.json", "left-out.jsonl", "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    repeated = calls(log)
    assert repeated.keys() == once.keys()
    assert sum(repeated.values()) - len(once) <= 8 * KILLS  # a kill costs one commit's questions at most


@pytest.mark.parametrize("name", ["left-out.jsonl", "report.json", "augmented.json"])
def test_killed_while_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Killed(BaseException):
        pass

    replace = os.replace

    def dies(part: Path, path: Path) -> None:
        if path.name == name:
            part.with_name(f"{name}.0.part").write_bytes(part.read_bytes())  # what a kill leaves behind
            raise Killed
        replace(part, path)

    monkeypatch.setattr("vleff.training.checkpoints.os.replace", dies)
    with pytest.raises(Killed):
        run(EXCERPT, tmp_path / "job")
    monkeypatch.undo()
    assert not (tmp_path / "job/augmented.json").exists() and (tmp_path / f"job/{name}.0.part").exists()
    run(EXCERPT, tmp_path / "job", negator(bad=""))  # nothing is generated again
    run(EXCERPT, tmp_path / "whole")
    assert (tmp_path / "job/augmented.json").read_bytes() == (tmp_path / "whole/augmented.json").read_bytes()
    assert {path.name for path in (tmp_path / "job").iterdir()} == {
        *("settings.json", "shards", "lock", "left-out.jsonl", "report.json", "augmented.json")
    }


def test_parts_need_nothing_from_each_other_and_finish_each_others_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = AugmentationJob(EXCERPT, tmp_path / "job", negator(log=log), AugmentationSettings())
    assert job.scan(pytest.fail) == PARAGRAPHS
    advanced: list[int] = []
    job.run_part(2, 3, "c", advanced.append)
    assert job.finish() is None and not job.output.exists()
    assert list(read_numbers(tmp_path / "job/shards")) == list(range(2, PARAGRAPHS, 3))
    job.run_part(0, 2, "other", advanced.append)  # as many processes as there are now
    job.run_part(1, 2, "more", advanced.append)
    assert sum(advanced) == PARAGRAPHS + len(range(2, PARAGRAPHS, 3)) and set(calls(log).values()) == {1}
    assert job.finish() is not None
    run(EXCERPT, tmp_path / "whole")
    assert job.output.read_bytes() == (tmp_path / "whole/augmented.json").read_bytes()


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    data = tmp_path / "squad.json"
    content = json.loads(EXCERPT.read_text())
    data.write_text(json.dumps(content))
    job = AugmentationJob(data, tmp_path / "job", negator(), AugmentationSettings())
    job.scan(pytest.fail)
    job.run_part(0, 1, "a", lambda count: None)
    content["data"][1:3] = content["data"][2:0:-1]
    data.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"squad\.json has changed since its augmentation was begun: paragraph \d+ is"):
        job.finish()
    assert not job.output.exists()


def test_workers_with_a_reader_make_what_one_process_makes(tmp_path: Path) -> None:
    small_reader().save_pretrained(tmp_path / "reader")
    make_tokenizer().save_pretrained(tmp_path / "reader")
    options = {"reader": str(tmp_path / "reader"), "threshold": -0.9, "max_length": 96, "stride": 32}
    one = run(EXCERPT, tmp_path / "one", generator_recipe("swap"), candidates=2, batch=16, **options)
    two = run(EXCERPT, tmp_path / "two", generator_recipe("swap"), candidates=2, batch=5, workers=2, **options)
    assert one == two and one.candidates["kept"] > 0 and one.candidates["answerable"] > 0
    assert (tmp_path / "one/augmented.json").read_bytes() == (tmp_path / "two/augmented.json").read_bytes()
    assert {path.name for path in (tmp_path / "two/shards").iterdir()} == {"part-00000.sqlite", "part-00001.sqlite"}


def test_an_error_in_a_worker_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 questions in a row failed"):
        run(EXCERPT, tmp_path / "job", negator(bad=""), workers=2)
    with pytest.raises(ValueError, match="'workers': expected at least 1, got 0"):
        run(EXCERPT, tmp_path / "job", negator(), workers=0)
    assert default_workers() >= 1


SLOW_JOB = """
import sys
from methods.unanswerable.own_generators import negator, run
from pathlib import Path
from vleff.unanswerable import augmentation

if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), negator(seconds=0.05), batch=1, workers=2)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SLOW_JOB)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "job.py"), str(EXCERPT), str(tmp_path / "job")]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    shards = tmp_path / "job/shards"
    wait_until(lambda: shards.exists() and len(set(read_numbers(shards))) > 4)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    wait_until(lambda: not in_session(process.pid))
    before = list(read_numbers(shards))
    assert 4 < len(before) < PARAGRAPHS
    run(EXCERPT, tmp_path / "job")
    run(EXCERPT, tmp_path / "whole")
    assert (tmp_path / "job/augmented.json").read_bytes() == (tmp_path / "whole/augmented.json").read_bytes()


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_session(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


# a small corpus, then one ten times as large: the peak says whether memory grew
MEMORY = """
import json, resource, sys
from pathlib import Path
from methods.unanswerable.own_generators import negator
from vleff.unanswerable.augmentation import AugmentationJob
from vleff.unanswerable.augmenting import AugmentationSettings

def corpus(path, articles):
    answers = [{"text": "Tea", "answer_start": 0}]
    with path.open("w") as file:
        file.write('{"data": [')
        for article in range(articles):
            questions = [{"id": f"{article}-{n}", "question": f"What is {n}?", "answers": answers} for n in range(4)]
            paragraphs = [{"context": f"Tea {article} {n} " + "is hot " * 900, "qas": [questions[n]]} for n in range(4)]
            file.write(("," if article else "") + json.dumps({"title": "T", "paragraphs": paragraphs}))
        file.write("]}")

def peak(folder, articles):
    folder.mkdir()
    corpus(folder / "squad.json", articles)
    job = AugmentationJob(folder / "squad.json", folder / "job", negator(), AugmentationSettings())
    job.scan(print)
    job.run_part(0, 1, "a", lambda count: None)
    job.finish()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder = Path(sys.argv[1])
print(peak(folder / "small", 100), peak(folder / "large", 1000), (folder / "large/squad.json").stat().st_size // 1024)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=True)
    small, large, size = map(int, done.stdout.split())  # KiB
    assert size > 25_000 and large - small < 3_000
    (last,) = list(stream_articles(tmp_path / "large/job/augmented.json", pytest.fail))[-1:]
    assert last.number == 999 and len(last.paragraphs[3].questions) == 2


def test_several_processes_by_torchrun(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "vleff.cli",
    ]
    command += ["unanswerable", "augment", "swap", str(EXCERPT), "--output", str(tmp_path / "job")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "augmented.json: " in done.stdout
    assert len(list((tmp_path / "job/shards").iterdir())) == 2
    run(EXCERPT, tmp_path / "whole", generator_recipe("swap"))
    assert (tmp_path / "job/augmented.json").read_bytes() == (tmp_path / "whole/augmented.json").read_bytes()


def test_several_machines_by_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is optional")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    recipe, settings, log = negator(log=tmp_path / "log"), AugmentationSettings(), tmp_path / "log"
    job = AugmentationJob(EXCERPT, tmp_path / "job", recipe, settings)
    job.scan(pytest.fail)
    job.run_part(1, 5, "before", lambda count: None)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": path_variable()})
    try:
        made = augment_with_ray(EXCERPT, tmp_path / "job", recipe, settings, pytest.fail, actors=2)
    finally:
        ray.shutdown()
    assert made == run(EXCERPT, tmp_path / "whole")
    assert (tmp_path / "job/augmented.json").read_bytes() == (tmp_path / "whole/augmented.json").read_bytes()
    assert set(calls(log).values()) == {1}
    assert augment_with_ray(EXCERPT, tmp_path / "job", recipe, settings, pytest.fail) == made  # without Ray: complete


def test_a_ray_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced; the other one and its successor lose nothing, and do nothing twice that was committed."""
    ray = pytest.importorskip("ray", reason="Ray is optional")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    grave, log = tmp_path / "grave", tmp_path / "log"
    recipe = GeneratorRecipe("negator", "1", partial(Mortal, grave=grave, before=40, log=log, seconds=0.01))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": path_variable()})
    try:
        settings = AugmentationSettings(batch=3)
        made = augment_with_ray(EXCERPT, tmp_path / "job", recipe, settings, pytest.fail, actors=2)
    finally:
        ray.shutdown()
    assert grave.exists()
    assert made == run(EXCERPT, tmp_path / "whole")
    assert (tmp_path / "job/augmented.json").read_bytes() == (tmp_path / "whole/augmented.json").read_bytes()
    assert (tmp_path / "job/report.json").read_bytes() == (tmp_path / "whole/report.json").read_bytes()
    again = sum(calls(log).values()) - len(calls(log))
    assert 0 < again <= 40


def path_variable() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r"pip install 'ray\[data\]'"):
        augment_with_ray(EXCERPT, tmp_path, negator(), AugmentationSettings(), pytest.fail)
    with pytest.raises(ValueError, match="'actors': expected at least 1, got 0"):
        augment_with_ray(EXCERPT, tmp_path, negator(), AugmentationSettings(), pytest.fail, actors=0)
