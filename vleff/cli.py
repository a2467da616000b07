"""The command `vleff`."""

import contextlib
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vleff import cli_dide, cli_lottery, cli_smarttrim, cli_unanswerable
from vleff.terminal import console, failure, failures, say

app = typer.Typer(
    help="Transformer encoders made faster by kernels that do only the work that matters for each input.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_lottery.app, name="lottery")
app.add_typer(cli_smarttrim.app, name="smarttrim")
app.add_typer(cli_dide.app, name="dide")
app.add_typer(cli_unanswerable.app, name="unanswerable")

MODEL_HELP = (
    "bert-base, roberta-base, distilbert-base, vit-base, vilt, bridgetower, blip, clip or meter (published size, "
    "random weights), a local directory, or a name on the Hugging Face hub."
)

BATCH_HELP = "Batch sizes, separated by commas."
AGAINST_HELP = "Also measure these engines: compile, openvino, onnxruntime, separated by commas."
BUDGET_HELP = "Seconds to measure each dtype and batch size; six rounds run even if they take longer."
THREADS_HELP = "CPU threads of every engine; torch's default if left out."
DATA_HELP = "SQuAD file (.json, .json.gz) to take paragraphs from, or questions for vision-language models."
PHOTOS_HELP = "Folder of images, for models that read them."
IMAGES_HELP = "mixed or square: sizes of ViLT's images; mixed if left out."
EXPLAINED_HELP = "Questions about images for a model with trimmers, as of `vleff smarttrim evaluate`; 32 are asked."
STACK_HELP = "Measure SmartTrim, lottery subnetworks and DiDE, alone and together, on vilt or a checkpoint of a ViLT."
OUTPUT_HELP = "Folder for the JSON file and the figure."
SELF_TEST_HELP = "Also compare every op with float64, on the processor and on the GPU; status 1 if one is wrong."
TABLE_HELP = "File to write; the one that vleff reads ($VLEFF_CHOICES or ~/.config/vleff/choices.json) if left out."


@app.command()
def bench(
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP} bert-base if left out, with --stack vilt.")] = None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    photos: Annotated[Path | None, typer.Option(help=PHOTOS_HELP)] = None,
    images: Annotated[str | None, typer.Option(help=IMAGES_HELP)] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or both, separated by a comma.")] = "fp32,bf16",
    batch: Annotated[str, typer.Option(help=BATCH_HELP)] = "1,8,32",
    against: Annotated[str, typer.Option(help=AGAINST_HELP)] = "",
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    budget: Annotated[float, typer.Option(help=BUDGET_HELP)] = 10.0,
    seed: Annotated[int, typer.Option(help="Of random weights and of the crops of photos.")] = 0,
    output: Annotated[Path, typer.Option(help=OUTPUT_HELP)] = Path("vleff-bench"),
    stack: Annotated[bool, typer.Option("--stack", help=STACK_HELP)] = False,
) -> None:
    """Measure a model on real input, dense and accelerated, and check that the outputs match.

    Ctrl-C ends it early and keeps what was measured.
    """
    from vleff.bench.run import Settings, run

    try:
        settings = Settings(
            model=model or ("vilt" if stack else "bert-base"),
            data=_existing(data, "data"),
            photos=_existing(photos, "photos"),
            images=images,
            dtypes=_words(dtype),
            batches=_integers(batch, "batch"),
            against=_words(against),
            threads=threads,
            budget=budget,
            seed=seed,
            output=output,
            command=shlex.join(["vleff", *sys.argv[1:]]),
        )
        if stack:
            from vleff.bench import stack as stacking

            complete = stacking.run(settings, console).complete
        else:
            complete = run(settings, console).complete
    except (ValueError, ImportError, OSError) as error:
        raise failure(error) from error
    except KeyboardInterrupt:  # before anything was measured
        raise typer.Exit(130) from None
    if not complete:
        raise typer.Exit(130)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder to write pictures and a page to.")] = Path("vleff-demo"),
    count: Annotated[int | None, typer.Option(help="How many questions; all that are there if left out.")] = None,
) -> None:
    """Accuracy, speed and pictures of a small trained model with SmartTrim, offline, in less than two minutes."""
    with failures("nothing was written."):
        from vleff.demo.run import run as run_demo

        run_demo(output, count)


@app.command()
def doctor(
    self_test: Annotated[bool, typer.Option("--self-test", help=SELF_TEST_HELP)] = False,
) -> None:
    """Report what vleff found on this machine, what is missing, and how to get it."""
    from vleff.doctor import collect

    marks = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "missing": "[red]✗[/]"}
    table = Table(show_header=False, box=None)
    for column in ("", "part", "found"):
        table.add_column(column, overflow="fold")
    checks = collect()
    for check in checks:
        hint = f"\n[dim]{escape(check.hint)}[/]" if check.hint else ""
        table.add_row(marks[check.status], escape(check.name), f"{escape(check.detail)}{hint}")
    console.print(table)
    if not self_test:
        return
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)
    from vleff.self_test import self_test as passes

    if not passes(console):
        raise typer.Exit(1)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Annotated[str | None, typer.Option(help=EXPLAINED_HELP)] = None,
) -> None:
    """Accelerate a model and say which parts run on which kernels, and why others do not; of one with trimmers, what
    they keep and gain."""
    import vleff
    from vleff.bench.models import load_model
    from vleff.bench.report import print_explanation

    if (Path(model) / "smarttrim.json").exists():
        with failures():
            from vleff.smarttrim.recipes import load_and_run

            trimmed = load_and_run(model, data)
            print_explanation(f"{model}: a model with trimmers", vleff.explain(trimmed), console)
        return
    try:
        if data is not None:
            raise ValueError(f"data: {model} holds no trimmed model; leave it out")
        loaded = load_model(model)
    except (ValueError, ImportError) as error:
        raise failure(error) from error
    with contextlib.suppress(TypeError):  # nothing in it can be accelerated: the report says why
        vleff.accelerate(loaded.model)
    print_explanation(f"{loaded.name}: {loaded.weights}", vleff.explain(loaded.model), console)


@app.command()
def tune(output: Annotated[Path | None, typer.Option(help=TABLE_HELP)] = None) -> None:
    """Measure the choices between kernels on this machine, in about two minutes, and write them to a table.

    Programs that start afterwards use it. Ctrl-C leaves everything as it was.
    """
    from vleff import choices
    from vleff.bench import report, tune_masked
    from vleff.bench import tune as tuning

    path = output or choices.user_file()
    try:
        with tuning.replaced(path) as write, report.progress(console) as progress:
            task = progress.add_task("", total=tuning.steps() + tune_masked.steps())
            advance = partial(progress.update, task, advance=1)
            measurements = tuning.measure(lambda what: advance(description=what))
            sparse = tune_masked.measure_sparse(lambda what: advance(description=what))
            table = tuning.as_table(measurements, sparse)
            write(table)
    except OSError as error:
        raise failure(error) from error
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was written.")
        raise typer.Exit(130) from None
    report.print_measurements(measurements, table, console)
    report.print_sparse_measurements(sparse, table, console)
    say(f"Wrote {path}")
    if output is not None and output.resolve() != choices.user_file().resolve():
        say(f"To use it: VLEFF_CHOICES={path}")


def main() -> None:
    """Runs the command line."""
    app()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split())


def _integers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise ValueError(f"{name}: expected whole numbers separated by commas, got {text!r}") from None


def _existing(path: Path | None, name: str) -> Path | None:
    if path is not None and not path.exists():
        raise ValueError(f"{name}: {path} does not exist")
    return path


if __name__ == "__main__":
    main()
