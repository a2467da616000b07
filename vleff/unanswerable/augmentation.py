"""Augmentation jobs: a SQuAD file becomes a SQuAD 2.0 file with generated unanswerable questions.

A job is a folder:

    settings.json     what the job is, and the hash of its input: a call with anything else is refused
    shards/           results by paragraph, a file for each process (`result_shards.py`)
    left-out.jsonl    what was malformed, and what generator or reader failed on, by id
    report.json       how many questions there are, and what became of the candidates
    augmented.json    SQuAD 2.0, written in one step when all paragraphs have results

Paragraphs are numbered as they come. Part p of n parts is every n-th paragraph from the p-th on, so that processes
need nothing from each other: each reads the input by itself, article by article, and skips what any shard has. The
process that finds all results in the shards writes the file.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from vleff.data.squad import Paragraph
from vleff.data.squad_stream import BadRecord, stream_articles
from vleff.training.checkpoints import check_settings, holds_something_else, replace_file
from vleff.unanswerable.augmented_file import AugmentationReport, result_json, write_augmented
from vleff.unanswerable.augmenting import AugmentationSettings, Augmenter
from vleff.unanswerable.generators import GeneratorRecipe, file_digest, fingerprint
from vleff.unanswerable.result_shards import ResultShard, read_numbers, read_results

SHARDS, LEFT_OUT, REPORT, OUTPUT, LOCK = "shards", "left-out.jsonl", "report.json", "augmented.json", "lock"
SECONDS_BETWEEN_COMMITS = 1.0  # what an interruption may cost

Report = Callable[[BadRecord], object]
Advance = Callable[[int], object]


class AugmentationJob:
    """A job in its folder, new or to be continued.

    Attributes:
        paragraphs: of the input, how many; 0 before `scan`.

    Args:
        data: a SQuAD 1.1 or 2.0 file (.json, .json.gz).
        folder: of the job; made if it is missing.
        recipe: of the generator.
        settings: of the augmentation.

    Raises:
        FileNotFoundError: there is no such input.
        FileExistsError: there is something else in the folder.
        ValueError: the folder is of a job with another input, generator, reader or settings.
    """

    def __init__(
        self, data: str | Path, folder: str | Path, recipe: GeneratorRecipe, settings: AugmentationSettings
    ) -> None:
        self.data, self.folder = Path(data), Path(folder)
        self.recipe, self.settings = recipe, settings
        self.paragraphs = 0
        if holds_something_else(self.folder):
            raise FileExistsError(f"{self.folder} exists already, and not as an augmentation job's folder")
        described = asdict(settings)
        del described["batch"]
        if settings.reader is not None:
            described["reader"] = fingerprint(settings.reader)
        described |= {"input": file_digest(self.data), "generator": recipe.name, "generator_version": recipe.version}
        check_settings(self.folder, described)

    @property
    def output(self) -> Path:
        """The augmented file; it is there if the job is complete."""
        return self.folder / OUTPUT

    def report(self) -> AugmentationReport:
        """Of a complete job."""
        return AugmentationReport(**json.loads((self.folder / REPORT).read_text()))

    def scan(self, report: Report) -> int:
        """Reads the input once and counts its paragraphs.

        Args:
            report: called for each malformed part, which is left out.

        Raises:
            ValueError: the input is no SQuAD file, or ends within.
        """
        self.paragraphs = sum(len(article.paragraphs) for article in stream_articles(self.data, report))
        return self.paragraphs

    def run_part(self, part: int, parts: int, shard: str, advance: Advance) -> None:
        """Works on one part of the paragraphs, from where any process left it.

        Args:
            part: 0 to `parts` - 1.
            parts: how many there are.
            shard: the name of this process's shard.
            advance: called with numbers of paragraphs that are finished, or were already.
        """
        done = _Passing(read_numbers(self.folder / SHARDS))
        pending: list[tuple[int, Paragraph]] = []
        finished: list[tuple[int, str]] = []
        due = time.monotonic() + SECONDS_BETWEEN_COMMITS
        with ResultShard(self.folder / SHARDS, shard) as results:
            for number, paragraph in self._numbered():
                if number % parts != part:
                    continue
                if done.has(number):
                    advance(1)
                    continue
                pending.append((number, paragraph))
                questions = sum(len(one.questions) for _, one in pending)
                if max(questions, len(pending)) < self.settings.batch:
                    continue
                finished += self._augmented(pending)
                pending = []
                if time.monotonic() >= due:
                    results.add(finished)
                    advance(len(finished))
                    finished = []
                    due = time.monotonic() + SECONDS_BETWEEN_COMMITS
            if pending:
                finished += self._augmented(pending)
            results.add(finished)
            advance(len(finished))

    def finish(self) -> AugmentationReport | None:
        """Writes the augmented file if all results are there, by this process or another.

        Returns:
            the report, or None if results are missing.

        Raises:
            ValueError: the input has changed since the job began.
        """
        if sum(1 for _ in read_numbers(self.folder / SHARDS)) < self.paragraphs:
            return None
        with self._locked():
            if not self.output.exists():
                self._write()
        return self.report()

    @cached_property
    def _augmenter(self) -> Augmenter:
        """Loaded when it is first needed, and then kept."""
        return Augmenter(self.recipe, self.settings)

    def _augmented(self, pending: list[tuple[int, Paragraph]]) -> list[tuple[int, str]]:
        results = self._augmenter([paragraph for _, paragraph in pending])
        return [
            (number, result_json(paragraph, result))
            for (number, paragraph), result in zip(pending, results, strict=True)
        ]

    def _numbered(self) -> Iterator[tuple[int, Paragraph]]:
        articles = stream_articles(self.data, lambda record: None)
        return enumerate(paragraph for article in articles for paragraph in article.paragraphs)

    def _write(self) -> None:
        for name in (LEFT_OUT, REPORT, OUTPUT):
            for part in self.folder.glob(f"{name}.*.part"):  # of a process that was killed while it wrote
                part.unlink()

        def write(output: Path) -> None:
            reports: list[AugmentationReport] = []
            results = read_results(self.folder / SHARDS)
            replace_file(
                self.folder / LEFT_OUT,
                lambda left_out: reports.append(write_augmented(self.data, results, output, left_out)),
            )
            text = json.dumps(asdict(reports[0]), indent=1) + "\n"
            replace_file(self.folder / REPORT, lambda part: part.write_text(text))

        replace_file(self.output, write)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Waits until no other process writes the augmented file."""
        file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


class _Passing:
    """Whether ascending numbers are among others that ascend, too."""

    def __init__(self, others: Iterator[int]) -> None:
        self._others, self._next = others, -1

    def has(self, number: int) -> bool:
        while self._next < number:
            following = next(self._others, None)
            if following is None:
                return False
            self._next = following
        return self._next == number
