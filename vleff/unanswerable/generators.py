"""What a generator of questions is, and how a job names, loads and identifies one."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from vleff.unanswerable.generation import GenerationSettings, QuestionGenerator
from vleff.unanswerable.swaps import VERSION, SwapGenerator

SWAP = "swap"
SMALL = "small"  # comes with vleff
TRAINED = "generator"  # in the folder of a training
_SMALL_FOLDER = Path(__file__).parent / "data" / SMALL
_CHUNK = 1 << 20


@dataclass(frozen=True)
class GeneratorRecipe:
    """How to get a generator, in any process.

    Attributes:
        name, version: of the generator and of how it searches; each question that it writes has them as provenance,
            and its id depends on them. Another version is expected to write other questions.
        load: makes the generator. To be sent to other processes it has to be picklable: a function of a module, or a
            `functools.partial` of one.
    """

    name: str
    version: str
    load: Callable[[], QuestionGenerator]


def generator_recipe(generator: str | Path, settings: GenerationSettings | None = None) -> GeneratorRecipe:
    """The recipe of "swap", of "small", or of a folder with a trained generator.

    Args:
        generator: "swap"; "small", the trained generator that comes with vleff; the folder of a training; or a folder
            that `save_pretrained` of a generator wrote.
        settings: how a trained generator searches.

    Raises:
        FileNotFoundError: it is none of these.
    """
    if str(generator) == SWAP:
        return GeneratorRecipe(SWAP, VERSION, SwapGenerator)
    folder = _SMALL_FOLDER if str(generator) == SMALL else Path(generator).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"generator: expected {SWAP!r}, {SMALL!r} or the folder of a trained generator, got {generator}"
        )
    name, folder = folder.name, folder / TRAINED if (folder / TRAINED).is_dir() else folder
    settings = settings or GenerationSettings()
    searched = {key: value for key, value in asdict(settings).items() if key != "batch"}
    digest = hashlib.sha256(json.dumps(searched, sort_keys=True).encode()).hexdigest()[:6]
    return GeneratorRecipe(name, f"{fingerprint(folder)}-{digest}", partial(_load_trained, folder, settings))


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


def _load_trained(folder: Path, settings: GenerationSettings) -> QuestionGenerator:
    """In the GPU's memory, if there is one."""
    import torch

    from vleff.unanswerable.loading import load_generator  # loads torch and transformers
    from vleff.unanswerable.model import PairToSequence

    generator = load_generator(folder, settings)
    model: torch.nn.Module = generator if isinstance(generator, PairToSequence) else generator.model
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return generator
