"""Shows what `vleff bench --stack` measured: a table on the terminal, and a figure."""

from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vleff.bench.report import DENSE_COLOR, OURS_COLOR, interval, milliseconds
from vleff.bench.stack_results import StackCell, StackResults, subsets


def finish(results: StackResults, path: Path, console: Console) -> None:
    """Prints the table, says what is missing, and draws the figure beside the results' file."""
    for engine, reason in results.unavailable.items():
        console.print(f"Not compared with {engine}: {reason}", markup=False, highlight=False)
    console.print(table(results))
    console.print(
        "Times are medians a batch; the ratios of medians to eager fp32, with their 95 % interval. The weights of "
        "the sparse layers and the trimmed tokens are drawn at random: this measures time, not accuracy. With DiDE "
        "the photos' representations are there already.",
        style="dim",
        highlight=False,
    )
    written = [path]
    try:
        draw_figure(results, path.with_suffix(".png"))
        written.append(path.with_suffix(".png"))
    except ImportError:
        console.print("No figure: matplotlib is not installed (pip install matplotlib, or vleff[bench]).", markup=False)
    for one in written:
        console.print(f"Wrote {one}", markup=False, highlight=False, soft_wrap=True)


def table(results: StackResults) -> Table:
    """All contenders of all cells."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("dtype", "batch", "", "ms", "speedup", "95 %\ninterval", "FLOP\nratio"):
        shown.add_column(header, justify="left" if header in ("dtype", "") else "right", no_wrap=True)
    for cell in results.cells:
        for name in cell.times:
            ratio = cell.flop_ratios.get(name)
            compared = cell.speedup(name)
            shown.add_row(
                cell.dtype,
                str(cell.batch),
                name,
                milliseconds(median(cell.times[name]) * 1e3),
                f"[bold]{compared.speedup:.2f}×[/]",  # noqa: RUF001  the multiplication sign
                interval(compared),
                "" if ratio is None else f"{ratio:.2f}",
                end_section=name == list(cell.times)[-1],
            )
    return shown


def draw_figure(results: StackResults, path: Path) -> None:
    """Draws all speedups over eager fp32, a panel a cell, to a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(results.cells)
    most = max(len(cell.times) for cell in results.cells)
    size = 4.6 * count, 1 + 0.3 * most
    figure, panels = pyplot.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    for axes, cell in zip(panels[0], results.cells, strict=True):
        _draw_cell(axes, cell)
    figure.suptitle(f"{results.machine['processor']}, {results.machine['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_cell(axes: Any, cell: StackCell) -> None:
    names = list(cell.times)
    compared = [cell.speedup(name) for name in names]
    below = [one.speedup - (one.speedup if one.low is None else one.low) for one in compared]
    above = [(one.speedup if one.high is None else one.high) - one.speedup for one in compared]
    colors = [OURS_COLOR if name in subsets() else DENSE_COLOR for name in names]
    places = range(len(names))
    axes.barh(places, [one.speedup for one in compared], 0.7, xerr=[below, above], color=colors, capsize=2)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(title=f"{cell.dtype}, batch {cell.batch}", xlabel="times faster than eager fp32")
    axes.spines[["top", "right"]].set_visible(False)
