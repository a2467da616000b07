"""Files that are cut, changed at random or replaced: loaders load or raise an error that names what they read."""

import gzip
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.dide import small_models, store_cases
from methods.lottery.families import bert
from methods.smarttrim.families import trimmed
from methods.test_composition import sparse
from methods.unanswerable.generators import model as new_model
from transformers import BertForQuestionAnswering

from vleff import dide, lottery, smarttrim, unanswerable
from vleff.data.squad import read_squad
from vleff.data.squad_stream import stream_articles
from vleff.dide.store import RepresentationStore

FLIPS = 12  # changed files for each file
OTHERS = (b"", b"[1]", b"{}", b'{"format": 1}', b"null", b"\x00\xff\xfe" * 20)


@dataclass
class Loader:
    """How something is saved into a folder that is not there yet, and loaded from it and used."""

    save: Callable[[Path], object]
    load: Callable[[Path], object]


def save_head_scores(folder: Path) -> None:
    folder.mkdir()
    lottery.HeadScores({"a": torch.ones(4)}, 3, 2).save(folder / "scores.json")


def save_store(folder: Path) -> None:
    store_cases.new_store(folder)
    store_cases.fill(folder, 40)


def read_store(folder: Path) -> None:
    store = RepresentationStore(folder)
    assert len(store.ids()) == len(store)


def run_sparse(folder: Path) -> None:
    model: Any = lottery.from_pretrained(folder)
    with torch.inference_mode():
        model(torch.zeros(1, 3, dtype=torch.int64))


def save_squad(folder: Path) -> None:
    folder.mkdir()
    excerpt = Path(__file__).parents[1] / "data" / "squad_excerpt.json"
    (folder / "squad.json.gz").write_bytes(gzip.compress(excerpt.read_bytes()))


def stream_squad(folder: Path) -> None:
    for _ in stream_articles(folder / "squad.json.gz", lambda record: None):
        pass


LOADERS = {
    "squad": Loader(save_squad, lambda folder: read_squad(folder / "squad.json.gz")),
    "streamed squad": Loader(save_squad, stream_squad),
    "lottery": Loader(lambda folder: lottery.save_pretrained(sparse(bert()), folder), run_sparse),
    "head scores": Loader(save_head_scores, lambda folder: lottery.HeadScores.load(folder / "scores.json")),
    "smarttrim": Loader(
        lambda folder: smarttrim.save_pretrained(trimmed(BertForQuestionAnswering).model, folder),
        smarttrim.from_pretrained,
    ),
    "dual encoder": Loader(small_models.student("vqa").save_pretrained, dide.DualEncoder.from_pretrained),
    "store": Loader(save_store, read_store),
    "generator": Loader(lambda folder: new_model().save_pretrained(folder), unanswerable.load_generator),
    "pair to sequence": Loader(
        lambda folder: new_model().save_pretrained(folder), unanswerable.PairToSequence.from_pretrained
    ),
}


def damaged(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Cut, changed at random places, replaced."""
    for share in (0.0, 0.1, 0.5, 0.99):
        yield content[: int(share * len(content))]
    for _ in range(FLIPS):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 4, 32))):
            # most of a file are numbers; what says how to read them is at its beginning
            place = draw.randrange(min(len(content), draw.choice((64, 4096, len(content)))))
            changed[place] = draw.randrange(256)
        yield bytes(changed)
    yield from OTHERS
    yield content + content


@pytest.mark.parametrize("name", LOADERS)
def test_damaged_files_load_or_are_refused_by_name(name: str, tmp_path: Path) -> None:
    loader, draw = LOADERS[name], random.Random(0)
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    loader.save(whole)
    loader.load(whole)
    refused = 0
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        for content in damaged(path.read_bytes(), draw):
            shutil.copytree(whole, folder)
            (folder / path.relative_to(whole)).write_bytes(content)
            try:
                loader.load(folder)
            except (ValueError, OSError) as error:
                refused += 1
                assert str(folder) in str(error), f"{path.name}, {content[:40]!r}: {error!r}"
            shutil.rmtree(folder)
    assert refused > 10
