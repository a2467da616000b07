"""Runs augmentation jobs: by one process, by several on a machine, by the ranks of torchrun."""

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vleff.unanswerable.augmentation import Advance, AugmentationJob, Report
from vleff.unanswerable.augmented_file import AugmentationReport
from vleff.unanswerable.augmenting import AugmentationSettings
from vleff.unanswerable.generators import GeneratorRecipe


def augment(
    data: str | Path,
    folder: str | Path,
    recipe: GeneratorRecipe,
    settings: AugmentationSettings,
    report: Report,
    workers: int = 1,
    quiet: bool = False,
) -> AugmentationReport | None:
    """Adds unanswerable questions to a SQuAD file; a call with the same folder goes on where one was interrupted.

    Under torchrun each rank works on its share; the last one to finish writes the file. The result is the same
    whatever the number of processes.

    Args:
        data: a SQuAD 1.1 or 2.0 file (.json, .json.gz).
        folder: of the job: `augmented.json`, `report.json` and `left-out.jsonl` are its results.
        recipe: of the generator: `generator_recipe`, or one of your own.
        settings: of the augmentation.
        report: called for each malformed part of the input, which is left out.
        workers: processes, each with a generator and a reader of its own, and its share of the cores; 1 is this
            process. With more, a script that calls this needs `if __name__ == "__main__":`, and a recipe of one's
            own has to be picklable.
        quiet: without a progress bar.

    Returns:
        what was made; None if other ranks still work.

    Raises:
        ChildProcessError: a worker died.
        FileExistsError: there is something else in the folder.
        ValueError: the input is no SQuAD file, the folder is of another job, or generator or reader fail on all.
    """
    if workers < 1:
        raise ValueError(f"argument 'workers': expected at least 1, got {workers}")
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    job = AugmentationJob(data, folder, recipe, settings)
    job.scan(report if rank == 0 else lambda record: None)
    if job.output.exists():
        return job.report()
    with progress_bar(quiet or rank > 0) as progress:
        task = progress.add_task("augmenting paragraphs", total=len(range(rank, job.paragraphs, ranks)))
        if workers == 1:
            job.run_part(rank, ranks, _shard(rank), lambda count: progress.advance(task, count))
        else:
            numbers = [rank + ranks * worker for worker in range(workers)]
            _run_workers(job, numbers, ranks * workers, lambda count: progress.advance(task, count))
    return job.finish()


def default_workers() -> int:
    """One process a core; one in all where there is a GPU or torchrun."""
    if torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    return len(os.sched_getaffinity(0))


def progress_bar(disable: bool) -> Progress:
    """With the number of paragraphs and the time that is left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), disable=disable
    )


def _shard(part: int) -> str:
    return f"part-{part:05d}"


def _run_workers(job: AugmentationJob, numbers: list[int], parts: int, advance: Advance) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // len(numbers))
    processes: dict[Connection, Any] = {}
    try:
        for part in numbers:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(job, part, parts, threads, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends when the worker does
            processes[ours] = process
        open_pipes: list[Any] = list(processes)
        while open_pipes:
            ready: list[Any] = wait(open_pipes)
            for pipe in ready:
                try:
                    message = pipe.recv()
                except EOFError:
                    open_pipes.remove(pipe)
                    continue
                if isinstance(message, Exception):
                    raise message
                advance(message)
        for process in processes.values():
            process.join()
            if process.exitcode:
                raise ChildProcessError(f"a worker ended with status {process.exitcode}; the same call goes on")
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _work(job: AugmentationJob, part: int, parts: int, threads: int, pipe: Connection) -> None:
    """What a worker process does: it sends numbers of finished paragraphs, and at most one exception."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        job.run_part(part, parts, _shard(part), pipe.send)
    except KeyboardInterrupt:  # Ctrl-C reaches all processes; the first one speaks
        os._exit(130)
    except (ValueError, TypeError, OSError, ImportError) as error:
        pipe.send(type(error)(str(error)))


def _end_with_parent() -> None:
    """Ends this process when the one that started it does, be it killed: else it would go on alone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
