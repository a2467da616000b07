"""What the commands of `vleff` share: how they speak and how they fail."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

console = Console()


def say(text: str) -> None:
    """Prints a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def failure(error: Exception) -> typer.Exit:
    """What to raise for an error of the user's input: it is printed, and the status is 2."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error  # its str() is a repr
    Console(stderr=True).print(f"[red]Error:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


@contextmanager
def failures(when_interrupted: str = "the same command goes on from the last checkpoint.") -> Iterator[None]:
    """Errors of the user's input end with a message and status 2, Ctrl-C with 130.

    Args:
        when_interrupted: what is said after Ctrl-C.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise failure(error) from error
    except KeyboardInterrupt:
        say(f"Interrupted: {when_interrupted}")
        raise typer.Exit(130) from None
