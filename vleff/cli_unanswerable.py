"""The command `vleff unanswerable`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from vleff.terminal import failures, say

app = typer.Typer(help="Unanswerable questions made from answerable ones.", no_args_is_help=True)
errors = Console(stderr=True)

SQUAD_HELP = "A SQuAD 2.0 file (.json, .json.gz)."
_SHOWN = 20


@app.command()
def pairs(
    data: Annotated[Path, typer.Argument(help=SQUAD_HELP)],
    output: Annotated[Path, typer.Option(help="The folder to write: train, development and test.jsonl.")],
    development: Annotated[float, typer.Option(help="Share of the questions for development.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the questions for the test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the choice of articles.")] = 0,
) -> None:
    """Pair up answerable and unanswerable questions about the same span, split by article."""
    with failures("files that are in the folder by now are whole."), _reported() as report:
        from vleff.data.squad_stream import stream_articles
        from vleff.unanswerable.pair_files import save_pairs
        from vleff.unanswerable.pairs import pair_statistics, split_pairs

        paragraphs = [one for article in stream_articles(data, report) for one in article.paragraphs]
        splits = split_pairs(paragraphs, development, test, seed)
        paths = {name: output / f"{name}.jsonl" for name in splits}
        for path in paths.values():
            if path.exists():
                raise FileExistsError(f"{path} exists already")
        output.mkdir(parents=True, exist_ok=True)
        for name, some in splits.items():
            say(f"{name}: {pair_statistics(some) if some else 'no pairs'}")
            save_pairs(some, paths[name])


@contextmanager
def _reported() -> Iterator[Any]:
    """Prints the first malformed records as they come, and in the end how many there were."""
    count = 0

    def report(record: object) -> None:
        nonlocal count
        count += 1
        if count <= _SHOWN:
            errors.print(f"[yellow]Left out:[/] {escape(str(record))}", highlight=False, soft_wrap=True)

    yield report
    if count > _SHOWN:
        errors.print(f"[yellow]Left out:[/] {count} malformed records in all", highlight=False)
