"""Generators for tests, at module level so that other processes can load them, and helpers for jobs."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vleff.data.squad import Paragraph, read_squad
from vleff.data.squad_stream import BadRecord
from vleff.unanswerable.augmentation_processes import augment
from vleff.unanswerable.augmented_file import AugmentationReport
from vleff.unanswerable.augmenting import AugmentationSettings
from vleff.unanswerable.generators import GeneratorRecipe
from vleff.unanswerable.sources import Candidate, GenerationSource


class Negator:
    """Writes "..., not 0", "..., not 1", ...; it logs the questions it saw, and fails on those with `bad` in them."""

    def __init__(self, log: Path | None = None, bad: str | None = None, seconds: float = 0.0) -> None:
        self.log, self.bad, self.seconds = log, bad, seconds

    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        if self.bad is not None and any(self.bad in source.question for source in sources):
            raise RuntimeError(f"a question has {self.bad!r} in it")
        if self.log is not None:
            with self.log.open("a") as file:
                file.write("".join(json.dumps([source.question, source.paragraph]) + "\n" for source in sources))
        if self.seconds:
            time.sleep(self.seconds * len(sources))
        return [
            [Candidate(f"{source.question}, not {number}", -number / 3) for number in range(count)]
            for source in sources
        ]


class Mortal(Negator):
    """As above; one of the processes that use it is killed, the first that was asked for `before` questions."""

    def __init__(self, grave: Path, before: int, **options: Any) -> None:
        super().__init__(**options)
        self.grave, self.before, self.asked = grave, before, 0

    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        self.asked += len(sources)
        if self.asked >= self.before:
            with contextlib.suppress(FileExistsError):
                self.grave.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(sources, count=count)


def negator(**options: Any) -> GeneratorRecipe:
    return GeneratorRecipe("negator", "1", partial(Negator, **options))


def run(data: Path, folder: Path, recipe: GeneratorRecipe | None = None, **options: Any) -> AugmentationReport:
    """A whole job, quietly; malformed records are errors unless `bad`, a list, takes them."""
    bad: list[BadRecord] | None = options.pop("bad", None)
    workers = options.pop("workers", 1)

    def report(record: BadRecord) -> None:
        assert bad is not None, record
        bad.append(record)

    settings = AugmentationSettings(**options)
    made = augment(data, folder, recipe or negator(), settings, report, workers, quiet=True)
    assert made is not None
    return made


def augmented(folder: Path) -> list[Paragraph]:
    return read_squad(folder / "augmented.json")


def generated(folder: Path) -> list[dict[str, Any]]:
    """The generated questions of an augmented file, as they are in it."""
    content = json.loads((folder / "augmented.json").read_text())
    questions = [one for article in content["data"] for paragraph in article["paragraphs"] for one in paragraph["qas"]]
    return [one for one in questions if "provenance" in one]
