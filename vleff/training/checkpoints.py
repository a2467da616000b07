"""Files that are there as a whole or not at all, and folders that belong to one set of settings."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

SETTINGS = "settings.json"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file in one step: to a temporary name, to the disk, then renamed.

    Args:
        path: in a folder that exists; what was there is replaced.
        write: write(path) makes the file.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def holds_something_else(folder: Path) -> bool:
    """Whether a folder has files, but no settings: not even ones that another process is writing."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    being_written = f"{SETTINGS}.*.part"  # of replace_file
    return bool(names) and not any(name == SETTINGS or fnmatch(name, being_written) for name in names)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, a file or folder that vleff wrote is read, and what goes wrong is a matter of its content.

    Raises:
        ValueError: it is damaged, or of something else; the message names `path`.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: damaged, or not what was saved there: {reason}") from error


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes settings into a folder, `settings.json`, or compares them with those that are there.

    Raises:
        ValueError: others are there; the message names the first that differs.
    """
    path = folder / SETTINGS
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda part: part.write_text(json.dumps(settings, indent=1) + "\n"))
        return
    before = json.loads(path.read_text())
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(f"{folder} was made with {name} = {before.get(name)!r}, now it is {value!r}")
