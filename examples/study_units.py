"""Units of a study: each is done once, by whichever process comes first. Start as many as the machine can take."""

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vleff.training.checkpoints import replace_file


class Units:
    """Results of units, a JSON file each.

    Args:
        results: folder of the files.
        work: folder for locks, which a process that dies gives back.
    """

    def __init__(self, results: Path, work: Path) -> None:
        self.results, self.locks = results, work / "locks"

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def get(self, name: str, default: dict[str, Any]) -> dict[str, Any]:
        return self[name] if name in self else default  # noqa: SIM401  the rule means this method

    def __getitem__(self, name: str) -> dict[str, Any]:
        return json.loads(self._path(name).read_text())

    def once(self, name: str, make: Callable[[], dict[str, Any]], wait: bool = False) -> None:
        """Writes what `make` returns, and the seconds that it took, unless the result is there.

        Args:
            wait: if another process is at it, return when it has finished; otherwise at once.
        """
        if name in self:
            return
        with self.claimed(name, wait) as mine:
            if not mine or name in self:
                return
            print(f"== {name}", flush=True)
            start = time.monotonic()
            self.write(name, {**make(), "seconds": round(time.monotonic() - start, 1)})

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Writes a result at once or not at all."""
        self.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1) + "\n"
        replace_file(self._path(name), lambda part: part.write_text(text))

    @contextmanager
    def claimed(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether a unit belongs to this process until it leaves the context.

        Args:
            wait: until no other process has it; then it always does.
        """
        self.locks.mkdir(parents=True, exist_ok=True)
        with (self.locks / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def _path(self, name: str) -> Path:
        return self.results / f"{name}.json"


def device() -> torch.device:
    """The GPU, if there is one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def interval(values: Sequence[float] | np.ndarray) -> str:
    """The mean with its 95 % interval (t distribution), where there are several values."""
    if len(values) == 0:
        return ""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values))
    if t is None:
        return f"{np.mean(values):.1f}"
    return f"{np.mean(values):.1f} ± {t * np.std(values, ddof=1) / math.sqrt(len(values)):.1f}"
