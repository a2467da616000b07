"""Encoding on several machines with Ray Data, an optional extra: shards in, shards out."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vleff.dide.encoding import Item, encode_batch, prepare
from vleff.dide.store import RepresentationStore


def encode_with_ray(
    model: str | Path,
    items: Sequence[Item],
    folder: str | Path,
    modality: str = "image",
    dtype: str = "float16",
    batch: int = 32,
    actors: int = 1,
    resources: dict[str, Any] | None = None,
) -> RepresentationStore:
    """Encodes what a store lacks, like `encode`, by actors of a Ray cluster, each into a shard of its own.

    Paths of images, the model and the store must be the same on all machines. Called again, it goes on with what is
    missing.

    Args:
        model: a saved dual encoder with its preprocessor; each actor loads and accelerates it once.
        items: ids with paths of images, or with texts.
        folder, modality, dtype: as of `encode`.
        batch: items at a time.
        actors: how many encode at once.
        resources: of an actor, as of Ray Data's map_batches: {"num_cpus": 8} or {"num_gpus": 1}.

    Returns:
        the store with all rows.

    Raises:
        ImportError: Ray Data is not installed.
        ForeignRepresentationsError: the store has representations of another version.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(
            "encoding on several machines needs Ray Data: pip install 'ray[data]', or vleff[ray]"
        ) from error
    from vleff.dide.dual_encoder import DualEncoder
    from vleff.dide.preprocessing import Preprocessor

    loaded = DualEncoder.from_pretrained(model)
    version = Preprocessor.from_pretrained(model).version(loaded, modality)
    width: Any = loaded.config.width
    store = RepresentationStore.create(folder, version, width, dtype)
    known = set(store.ids())
    rows = [{"id": name, "item": str(item)} for name, item in items if name not in known]
    if rows:
        # no tasks besides the actors: they may hold all the processors that there are
        appended = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch)).map_batches(
            _Encoder,
            fn_constructor_args=(str(model), str(folder), modality),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **(resources or {}),
        )
        appended.take_all()
    return RepresentationStore(folder, version)


class _Encoder:
    """One actor: a model, and a shard of its own."""

    def __init__(self, model: str, folder: str, modality: str) -> None:
        import vleff
        from vleff.dide.dual_encoder import DualEncoder
        from vleff.dide.preprocessing import Preprocessor

        self.model = vleff.accelerate(DualEncoder.from_pretrained(model).eval())
        self.preprocessor = Preprocessor.from_pretrained(model)
        self.modality = modality
        self.writer = RepresentationStore(folder).writer(f"ray-{uuid.uuid4().hex}")

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from vleff.training.evaluating import evaluating

        new = [
            (str(name), str(item))
            for name, item in zip(rows["id"], rows["item"], strict=True)
            if name not in self.writer.known  # Ray repeats a task whose answer was lost
        ]
        if new:
            ids, inputs = prepare(self.preprocessor, self.modality, new)
            with evaluating(self.model):
                self.writer.append(ids, encode_batch(self.model, self.modality, inputs).numpy())
        return {"appended": np.array([len(new)])}
