"""The outcomes of the self-test as a table for the terminal and as text for an issue."""

import json
from collections.abc import Iterable, Sequence

import torch
from rich.table import Table

import vleff
from vleff.bench.results import machine
from vleff.self_test.running import Outcome


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """A row an op, a column a target: the largest share of its bound that an error takes."""
    targets = _unique(outcome.target for outcome in outcomes)
    table = Table(title="Errors against float64, as shares of what is allowed", title_justify="left")
    table.add_column("op")
    for target in targets:
        table.add_column(target, justify="right")
    for op in _unique(outcome.op for outcome in outcomes):
        row = []
        for target in targets:
            of_cell = [outcome for outcome in outcomes if (outcome.op, outcome.target) == (op, target)]
            share = max((outcome.error / outcome.bound for outcome in of_cell), default=None)
            row.append("no kernel" if share is None else f"[{'green' if share <= 1 else 'red'}]{share:.2f}[/]")
        table.add_row(op, *row)
    return table


def as_text(outcomes: Sequence[Outcome], gpu: str, seconds: float) -> str:
    """Everything that an issue about a failure needs.

    Args:
        outcomes: of the whole run.
        gpu: the GPU in words, as of `find_targets`.
        seconds: how long it took.
    """
    build, found = json.loads(torch.ops.vleff.build_info()), machine()
    failed = [outcome for outcome in outcomes if not outcome.ok]
    targets = _unique(outcome.target for outcome in outcomes)
    cuda = f"CUDA {build['cuda']} for {build['cuda_architectures']}" if build["cuda"] else "without CUDA"
    lines = [
        f"vleff {vleff.__version__} self-test: {len(failed)} of {len(outcomes)} checks failed, {seconds:.0f} s",
        f"built by {build['compiler']}, {cuda}",
        f"torch {found['torch']}, transformers {found['transformers']}, Python {found['python']}, {found['system']}",
        f"processor: {found['processor']}, {found['threads']} threads, uses {found['instruction_set']}",
        f"GPU: {gpu}",
        "largest error of an output or a gradient against float64, over the largest number of that tensor:",
        _line("op", "dtype", "allowed", *targets),
    ]
    for op in _unique(outcome.op for outcome in outcomes):
        for dtype in _unique(outcome.dtype for outcome in outcomes if outcome.op == op):
            of_line = [outcome for outcome in outcomes if (outcome.op, outcome.dtype) == (op, dtype)]
            errors = [[outcome.error for outcome in of_line if outcome.target == target] for target in targets]
            cells = [f"{max(of_target):.1e}" if of_target else "-" for of_target in errors]
            lines.append(_line(op, str(dtype).removeprefix("torch."), f"{of_line[0].bound:.1e}", *cells))
    for outcome in failed:
        what = f"{outcome.op}, {outcome.case}, {outcome.dtype}, {outcome.target}"
        lines.append(f"FAILED {what}: error {outcome.error:.1e}, allowed {outcome.bound:.1e}: {outcome.detail}")
    return "\n".join(lines)


def _line(op: str, dtype: str, *cells: str) -> str:
    return f"{op:23} {dtype:8} {' '.join(f'{cell:>11}' for cell in cells)}"


def _unique(items: Iterable) -> list:
    return list(dict.fromkeys(items))
