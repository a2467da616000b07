"""Shows results: tables on the terminal, and a figure."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.tree import Tree

from vleff.bench.matching import Match
from vleff.bench.results import BASELINE, OURS, Cell, Results, RunResults
from vleff.bench.timing import Comparison
from vleff.bench.tune import Measurement
from vleff.bench.tune_masked import SparseMeasurement
from vleff.models.report import CALLS_AS_BEFORE, Report

DENSE_COLOR, OURS_COLOR = "#8d99ae", "#d1495b"


def print_header(results: RunResults[Any], console: Console) -> None:
    """Says what is measured, on what."""
    machine = results.machine
    for line in (
        f"{results.model}: {results.weights}",
        f"Input: {results.samples}",
        f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}; "
        f"torch {machine['torch']}, transformers {machine['transformers']}",
    ):
        console.print(line, markup=False, highlight=False)


def print_tables(results: Results, console: Console) -> None:
    """The main table, and a second one if other engines took part."""
    measured = [cell for cell in results.cells if cell.rounds]
    if not measured:
        console.print("Nothing was measured.")
        return
    console.print(_main_table(measured))
    others = [engine for cell in measured for engine in cell.times if engine not in (BASELINE, OURS)]
    if others:
        console.print(_other_engines(measured))
    console.print(
        "Times are medians a batch. Speedup: ratio of medians, with its 95 % interval. FLOP ratio: dense "
        "with padding over vleff. Efficiency: speedup over FLOP ratio. Match: outputs equal within the "
        "documented tolerance.",
        style="dim",
        highlight=False,
    )


def draw_figure(results: Results, path: Path) -> None:
    """Draws the speedup of every cell with its interval, and the time a batch, to a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [cell for cell in results.cells if cell.rounds]
    labels = [f"{cell.dtype}\nbatch {cell.batch}" for cell in cells]
    places = range(len(cells))
    figure, (times, speedups) = pyplot.subplots(1, 2, figsize=(4 + 1.4 * len(cells), 4), layout="constrained")
    for engine, color, shift in ((BASELINE, DENSE_COLOR, -0.2), (OURS, OURS_COLOR, 0.2)):
        heights = [cell.milliseconds(engine) for cell in cells]
        times.bar([place + shift for place in places], heights, 0.4, color=color, label=engine)
    times.set(yscale="log", ylabel="milliseconds a batch")
    times.legend(frameon=False)
    comparisons = [cell.speedup() for cell in cells]
    speedups.bar(places, [c.speedup for c in comparisons], 0.6, color=OURS_COLOR)
    speedups.errorbar(
        places,
        [c.speedup for c in comparisons],
        yerr=[
            [c.speedup - (c.speedup if c.low is None else c.low) for c in comparisons],
            [(c.speedup if c.high is None else c.high) - c.speedup for c in comparisons],
        ],
        fmt="none",
        ecolor="black",
        capsize=4,
    )
    speedups.axhline(1, color="black", linewidth=0.8)
    speedups.set(ylabel="times faster than dense")
    for axes in (times, speedups):
        axes.set_xticks(places, labels)
        axes.spines[["top", "right"]].set_visible(False)
    machine = results.machine
    figure.suptitle(f"{results.model}, {machine['threads']} threads, {machine['processor']}", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def progress(console: Console) -> Progress:
    """A progress bar that leaves nothing behind."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def print_measurements(measurements: list[Measurement], table: dict[str, Any], console: Console) -> None:
    """What `vleff tune` measured, and what it decided."""
    shown = _table("dtype", "weight", *(f"{rows}\nrows" for rows in measurements[0].gains), "all")
    for one in measurements:
        gains = (f"{gain.speedup:.2f}× [dim]{interval(gain)}[/]" for gain in one.gains.values())  # noqa: RUF001
        shown.add_row(one.dtype, f"{one.shape[0]} x {one.shape[1]}", *gains, f"[bold]{one.gain:.2f}×[/]")  # noqa: RUF001
    console.print(shown)
    console.print("Speedup of a packed weight over a plain one; 95 % interval; geometric mean.", style="dim")
    for dtype, choice in table["pack_linear_weight"].items():
        which = f"weights of at least {choice['least_elements']:,} elements" if choice else "no weights"
        console.print(f"{dtype}: packs {which}", highlight=False)


def print_sparse_measurements(measurements: list[SparseMeasurement], table: dict[str, Any], console: Console) -> None:
    """What `vleff tune` measured of sparse layers, and what it decided."""
    if not measurements:
        return
    cases = (f"{shape[0]} x {shape[1]}\n{rows} rows" for shape, rows in measurements[0].gains)
    shown = _table("dtype", "zeros", *cases, "all")
    for one in measurements:
        gains = (f"{gain.speedup:.2f}×" for gain in one.gains.values())  # noqa: RUF001
        shown.add_row(one.dtype, f"{1 - one.density:.0%}", *gains, f"[bold]{one.gain:.2f}×[/]")  # noqa: RUF001
    console.print(shown)
    console.print("Speedup of a sparse product over a dense one, its weight packed; geometric mean.", style="dim")
    for dtype, choice in table["masked_linear"].items():
        console.print(f"{dtype}: sparse from {1 - choice['densest']:.0%} zeros on", highlight=False)


def print_explanation(title: str, report: Report, console: Console) -> None:
    """What runs where in a model."""
    console.print(f"[bold]{escape(title)}[/]", highlight=False)
    console.print(f"Kernels: {report.cpu_isa}. Choice table: {escape(report.choices)}.", highlight=False)
    for encoder in report.encoders:
        name = f"[bold]{escape(encoder.path or 'model')}[/] ({encoder.class_name}"
        name += f", {encoder.family})" if encoder.family else ")"
        if encoder.accelerated:
            tree = Tree(f"{name}: [green]packed[/], attention implementation {encoder.attention!r}", highlight=False)
            for count, path, kernels in encoder.alike():
                layers = tree.add(f"{count} x {escape(path)}")
                for kernel in kernels.split("; "):
                    layers.add(escape(kernel))
        else:
            tree = Tree(f"{name}: [yellow]as transformers wrote it[/]", highlight=False)
            tree.add(escape(encoder.reason or ""))
        console.print(tree)
    if report.linears:
        tree = Tree("other linear layers", highlight=False)
        for kernel, count in report.linears.items():
            tree.add(escape(f"{count} x {kernel}"))
        console.print(tree)
    for trimming in report.trimmings:
        console.print(trimming, markup=False, highlight=False, soft_wrap=True)
    if any(encoder.accelerated for encoder in report.encoders):
        console.print(CALLS_AS_BEFORE, style="dim", highlight=False)


def interval(comparison: Comparison) -> str:
    """The 95 % interval in words."""
    if comparison.low is None or comparison.high is None:
        return "too few rounds"
    return f"{comparison.low:.2f}–{comparison.high:.2f}"  # noqa: RUF001  an en dash joins numbers


def _main_table(cells: list[Cell]) -> Table:
    tokens, ratios = "tokens\nmean/pad", ("FLOP\nratio", "effi-\nciency", "match")
    speeds = ("dense\nms", "vleff\nms", "speed-\nup", "95 %\ninterval", "rounds")
    table = _table("dtype", "batch", tokens, *speeds, *ratios)
    for i, cell in enumerate(cells):
        comparison = cell.speedup()
        table.add_row(
            cell.dtype,
            str(cell.batch),
            f"{cell.mean_length:.0f}/{cell.padded_length:.0f}",
            milliseconds(cell.milliseconds(BASELINE)),
            milliseconds(cell.milliseconds(OURS)),
            f"[bold]{comparison.speedup:.2f}×[/]",  # noqa: RUF001  the multiplication sign
            interval(comparison),
            str(cell.rounds),
            f"{cell.flop_ratio:.2f}",
            f"{cell.efficiency():.2f}",
            _tick(cell.matches.get(OURS)),
            end_section=i + 1 < len(cells) and cells[i + 1].dtype != cell.dtype,
        )
    return table


def _other_engines(cells: list[Cell]) -> Table:
    table = _table("dtype", "batch", "engine", "engine\nms", "vleff is\nfaster", "95 %\ninterval", "match")
    for cell in cells:
        for engine in cell.times:
            if engine not in (BASELINE, OURS):
                comparison = cell.speedup(over=engine)
                table.add_row(
                    cell.dtype,
                    str(cell.batch),
                    engine,
                    milliseconds(cell.milliseconds(engine)),
                    f"[bold]{comparison.speedup:.2f}×[/]",  # noqa: RUF001  the multiplication sign
                    interval(comparison),
                    _tick(cell.matches.get(engine)),
                )
    return table


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)  # eleven columns in a terminal of 80
    for header in headers:
        left = header in ("dtype", "engine")
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    return table


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _tick(match: Match | None) -> str:
    if match is None:
        return "?"
    return "[green]✓[/]" if match.ok else f"[red]✗ {match.difference:.0e}[/]"
