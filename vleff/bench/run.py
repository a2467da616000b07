"""The main job: measures a model, dense and accelerated, cell by cell."""

import copy
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vleff.bench import engines, report
from vleff.bench.flops import FlopCount
from vleff.bench.inputs import Batch
from vleff.bench.matching import match, reference_outputs
from vleff.bench.models import LoadedModel, load_model, samples_for
from vleff.bench.photos import IMAGE_SIZES
from vleff.bench.results import BASELINE, OURS, Cell, ResultFile, Results, machine, now
from vleff.bench.timing import MINIMUM_ROUNDS, measure_rounds

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What to measure. `vleff bench --help` explains each.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    model: str = "bert-base"
    data: Path | None = None
    photos: Path | None = None
    images: str | None = None
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    batches: tuple[int, ...] = (1, 8, 32)
    against: tuple[str, ...] = ()
    threads: int | None = None
    budget: float = 10.0
    seed: int = 0
    output: Path = field(default_factory=lambda: Path("vleff-bench"))
    command: str = "vleff bench"

    def __post_init__(self) -> None:
        _check_choices("dtype", self.dtypes, DTYPES)
        _check_choices("against", self.against, engines.OTHERS)
        if self.images not in (None, *IMAGE_SIZES):
            raise ValueError(f"images: expected {' or '.join(IMAGE_SIZES)}, got {self.images!r}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batch: expected sizes of at least 1, got {list(self.batches)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if not self.budget > 0:
            raise ValueError(f"budget: expected a positive number of seconds a cell, got {self.budget}")


def run(settings: Settings, console: Console) -> Results:
    """Measures, prints the tables and writes the JSON file and the figure.

    Interrupting it (KeyboardInterrupt) keeps what was measured so far; `Results.complete` is then False.

    Raises:
        ValueError, ImportError: the model or the data cannot be read.
        OSError: the output folder cannot be written to.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    import vleff._library  # noqa: F401  registers the ops

    loaded = load_model(settings.model, settings.seed)
    samples = samples_for(loaded, settings.data, settings.photos, settings.seed, settings.images)
    results = Results(loaded.name, loaded.weights, samples.description, settings.command, date=now(), machine=machine())
    groups = [samples.batches(batch) for batch in settings.batches]
    count = FlopCount(loaded.model)
    file = ResultFile(settings.output, results)
    report.print_header(results, console)
    try:
        with report.progress(console) as progress:
            total = len(settings.dtypes) * len(settings.batches) * MINIMUM_ROUNDS
            show = partial(progress.update, progress.add_task("preparing", total=total))
            for dtype in settings.dtypes:
                for _ in _measure_dtype(settings, loaded, groups, count, dtype, results, show):
                    file.write(results)
        results.complete = True
    except KeyboardInterrupt:
        console.print("\nInterrupted: this is what was measured so far.")
    finally:
        _finish(results, file, console)
    return results


def _measure_dtype(
    settings: Settings,
    loaded: LoadedModel,
    groups: list[list[Batch]],
    count: FlopCount,
    dtype: str,
    results: Results,
    show: Callable[..., None],
) -> Iterator[Cell]:
    """Measures all batch sizes of one dtype; yields each cell when it is complete."""
    model: torch.nn.Module = copy.deepcopy(loaded.model)
    model.to(DTYPES[dtype])
    example = groups[-1][0].inputs
    show(description=f"{dtype}: reference in fp64")
    references = reference_outputs(model, groups[0])
    gc.collect()  # the double-precision copy
    others = {name: engines.OTHERS[name] for name in settings.against}
    builders = {BASELINE: engines.dense, OURS: engines.vleff, **others}
    runners = {}
    for name, build in builders.items():
        show(description=f"{dtype}: preparing {name}")
        try:
            runners[name] = build(model, example)
        except engines.EngineUnavailableError as reason:
            results.unavailable[f"{name} ({dtype})"] = str(reason)
    for batches in groups:
        show(description=f"{dtype}, batch {len(batches[0].samples)}: comparing outputs")
        cell = _new_cell(dtype, batches, count)
        outputs = _outputs(runners, batches, results.unavailable, f"{dtype}, batch {cell.batch}")
        cell.matches = {
            name: match(batches, outputs[BASELINE], output, references, DTYPES[dtype])
            for name, output in outputs.items()
            if name != BASELINE
        }
        able = {name: runners[name] for name in outputs}
        del outputs
        cell.times = {name: [] for name in able}
        results.cells.append(cell)
        contenders = {name: partial(_run_all, runner, batches) for name, runner in able.items()}
        for times in measure_rounds(contenders, settings.budget):
            for name, seconds in times.items():
                cell.times[name].append(seconds)
            description = f"{dtype}, batch {cell.batch}: round {cell.rounds}"
            show(description=description, advance=int(cell.rounds <= MINIMUM_ROUNDS))
        yield cell


def _new_cell(dtype: str, batches: list[Batch], count: FlopCount) -> Cell:
    lengths = [length for batch in batches for length in batch.lengths]
    padded = [batch.padded_length for batch in batches]
    ragged = sum(count.ragged(batch) for batch in batches)
    flops = {
        "dense_padded": sum(count.padded(batch) for batch in batches),
        "dense_true": ragged,
        "vleff": ragged,
    }
    size = len(batches[0].samples)
    return Cell(dtype, size, len(batches), sum(lengths) / len(lengths), sum(padded) / len(padded), flops)


def _outputs(
    runners: dict[str, engines.Engine], batches: list[Batch], unavailable: dict[str, str], where: str
) -> dict[str, list[engines.HiddenStates]]:
    """Runs every engine once, which also warms it up; leaves out other engines that fail on these batches."""
    outputs = {}
    for name, runner in runners.items():
        try:
            outputs[name] = [runner(batch.inputs) for batch in batches]
        except Exception as error:
            if name in (BASELINE, OURS):
                raise
            unavailable[f"{name} ({where})"] = f"it fails: {engines.reason(error)}"
    return outputs


def _run_all(runner: engines.Engine, batches: list[Batch]) -> None:
    for batch in batches:
        runner(batch.inputs)


def _finish(results: Results, file: ResultFile, console: Console) -> None:
    results.cells = [cell for cell in results.cells if cell.rounds]
    if not results.cells:
        file.discard()
        console.print("Nothing was measured, so nothing was written.")
        return
    file.write(results)
    for engine, reason in results.unavailable.items():
        console.print(f"Not compared with {engine}: {reason}", markup=False, highlight=False)
    report.print_tables(results, console)
    written = [file.path]
    try:
        figure = file.path.with_suffix(".png")
        report.draw_figure(results, figure)
        written.append(figure)
    except ImportError:
        console.print("No figure: matplotlib is not installed (pip install matplotlib, or vleff[bench]).", markup=False)
    for path in written:
        console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _check_choices(name: str, given: tuple[str, ...], allowed: Iterable[str]) -> None:
    for value in given:
        if value not in allowed:
            raise ValueError(f"{name}: expected some of {', '.join(allowed)}, got {value!r}")
    if name == "dtype" and not given:
        raise ValueError("dtype: expected at least one, got none")
