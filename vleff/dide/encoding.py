"""Encoding jobs: a gallery of images, or a list of texts, becomes rows of a representation store."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from vleff.dide.dual_encoder import DualEncoder
from vleff.dide.preprocessing import Preprocessor
from vleff.dide.store import RepresentationStore
from vleff.training.evaluating import evaluating

Item = tuple[str, Any]

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SECONDS_BETWEEN_APPENDS = 1.0  # what an interruption may cost


def image_files(folder: str | Path) -> list[Item]:
    """The images in a folder and its subfolders, by their paths within it, sorted.

    Raises:
        ValueError: there are none.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    return [(path.relative_to(folder).as_posix(), path) for path in found]


def encode(
    model: DualEncoder,
    preprocessor: Preprocessor,
    items: Sequence[Item],
    folder: str | Path,
    modality: str = "image",
    dtype: str = "float16",
    batch: int = 32,
    workers: int = 0,
    quiet: bool = False,
) -> RepresentationStore:
    """Encodes what a store lacks, and appends it. Interrupted, it goes on where it stopped when called again.

    Under torchrun each process encodes its share into a shard of its own: the items whose number, divided by the
    number of processes, leaves its rank. The processes need nothing from each other.

    Args:
        model: in eval mode, best accelerated, on the device that is to encode.
        items: ids, and images as the image processor takes them or their paths; texts if `modality` is "text".
        folder: of the store; made if it is missing.
        modality: "image" or "text".
        dtype: of a new store, "float16" or "float32".
        batch: items at a time.
        workers: processes that load and preprocess meanwhile; 0 does that in between.
        quiet: without a progress bar.

    Returns:
        the store as it is when this process is done; others may still append to it.

    Raises:
        ForeignRepresentationsError: the store has representations of another version.
        ValueError: an item could not be read; the message names it.
    """
    version = preprocessor.version(model, modality)
    width: Any = model.config.width
    store = RepresentationStore.create(folder, version, width, dtype)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with store.writer(f"rank-{rank:05d}") as writer, evaluating(model), Progress(disable=quiet or rank > 0) as progress:
        mine = [item for item in items[rank::ranks] if item[0] not in writer.known]
        loader: Iterable[Any] = DataLoader(
            mine,  # type: ignore[arg-type]
            batch_size=batch,
            collate_fn=partial(prepare, preprocessor, modality),
            num_workers=workers,
        )
        task = progress.add_task(f"encoding {modality}s", total=len(mine))
        for ids, vectors in _encoded(model, loader, modality):
            writer.append(ids, vectors.numpy())
            progress.advance(task, len(ids))
    return RepresentationStore(folder, version)


def prepare(preprocessor: Preprocessor, modality: str, items: Sequence[Item]) -> tuple[list[str], dict[str, Tensor]]:
    """Ids and the arguments of the tower."""
    ids = [name for name, _ in items]
    if modality == "text":
        return ids, preprocessor.texts([text for _, text in items])
    return ids, preprocessor.images([load_image(name, image) for name, image in items])


def encode_batch(model: DualEncoder, modality: str, inputs: dict[str, Tensor]) -> Tensor:
    """float32 [items, width] on the CPU."""
    tower: Any = model.encode_image if modality == "image" else model.encode_text
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    on_device = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in on_device.items()}
    return tower(**on_device).float().cpu()


def _encoded(model: DualEncoder, loader: Iterable[Any], modality: str) -> Iterator[tuple[list[str], Tensor]]:
    """Rows, gathered until an append is due: a sync to the disk for each batch would cost time."""
    ids: list[str] = []
    rows: list[Tensor] = []
    due = time.monotonic() + SECONDS_BETWEEN_APPENDS
    for some, inputs in loader:
        ids += some
        rows.append(encode_batch(model, modality, inputs))
        if time.monotonic() >= due:
            yield ids, torch.cat(rows)
            ids, rows = [], []
            due = time.monotonic() + SECONDS_BETWEEN_APPENDS
    if ids:
        yield ids, torch.cat(rows)


def load_image(name: str, image: Any) -> Any:
    """Reads an image if it is a path; others stay as they are.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: the file is no image; the message has `name`.
    """
    if not isinstance(image, str | Path):
        return image
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need Pillow: pip install pillow, or vleff[bench]") from error
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"{name}: expected an image, got {error}") from error
