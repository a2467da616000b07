"""What a generator of questions is, and how a job names, loads and identifies one."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from vleff.unanswerable.sources import Candidate, GenerationSource
from vleff.unanswerable.swaps import VERSION, SwapGenerator

SWAP = "swap"
_CHUNK = 1 << 20


class QuestionGenerator(Protocol):
    """Writes questions that paragraphs do not answer."""

    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        """At most `count` candidates for each source, the best first."""


@dataclass(frozen=True)
class GeneratorRecipe:
    """How to get a generator, in any process.

    Attributes:
        name, version: of the generator; each question that it writes has them as provenance, and its id depends on
            them. Another version is expected to write other questions.
        load: makes the generator. To be sent to other processes it has to be picklable: a function of a module, or a
            `functools.partial` of one.
    """

    name: str
    version: str
    load: Callable[[], QuestionGenerator]


def generator_recipe(generator: str | Path) -> GeneratorRecipe:
    """The recipe of "swap", or of a folder with a trained generator.

    Raises:
        FileNotFoundError: it is neither.
    """
    if str(generator) == SWAP:
        return GeneratorRecipe(SWAP, VERSION, SwapGenerator)
    folder = Path(generator).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"generator: expected {SWAP!r} or the folder of a trained generator, got {generator}")
    return GeneratorRecipe(folder.name, fingerprint(folder), partial(_load_trained, folder))


def fingerprint(model: str | Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a folder's files, subfolders left out; a hub's name as it is."""
    folder = Path(model)
    if not folder.is_dir():
        return str(model)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + file_digest(path).encode())
    return digest.hexdigest()[:12]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _load_trained(folder: Path) -> QuestionGenerator:
    from vleff import unanswerable

    load: Any = unanswerable.load_generator  # type: ignore[attr-defined]
    return load(folder)
