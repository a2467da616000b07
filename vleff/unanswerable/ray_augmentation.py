"""Augmentation on several machines with Ray Data, an optional extra: parts in, shards out."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from vleff.unanswerable.augmentation import AugmentationJob, Report
from vleff.unanswerable.augmented_file import AugmentationReport
from vleff.unanswerable.augmenting import AugmentationSettings
from vleff.unanswerable.generators import GeneratorRecipe

_PARTS_AN_ACTOR = 4  # so that none waits long for the slowest


def augment_with_ray(
    data: str | Path,
    folder: str | Path,
    recipe: GeneratorRecipe,
    settings: AugmentationSettings,
    report: Report,
    actors: int = 1,
    resources: dict[str, Any] | None = None,
) -> AugmentationReport | None:
    """Does what `augment` does by actors of a Ray cluster, each with a shard of its own.

    The paths of input, job, generator and reader must be the same on all machines.

    Args:
        data, folder, recipe, settings, report: as of `augment`.
        actors: how many work at once.
        resources: of an actor, as of Ray Data's map_batches: {"num_cpus": 8} or {"num_gpus": 1}.

    Returns:
        what was made.

    Raises:
        ImportError: Ray Data is not installed.
        Others as of `augment`.
    """
    if actors < 1:
        raise ValueError(f"argument 'actors': expected at least 1, got {actors}")
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(
            "augmenting on several machines needs Ray Data: pip install 'ray[data]', or vleff[ray]"
        ) from error
    job = AugmentationJob(data, Path(folder).resolve(), recipe, settings)
    job.data = job.data.resolve()
    job.scan(report)
    if not job.output.exists():
        parts = actors * _PARTS_AN_ACTOR
        # no tasks besides the actors: they may hold all the processors that there are
        numbers = ray.data.from_items([{"part": part} for part in range(parts)], override_num_blocks=parts)
        worked = numbers.map_batches(
            _Worker,
            fn_constructor_args=(job, parts),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **(resources or {}),
        )
        worked.take_all()
    return job.finish()


class _Worker:
    """One actor: it works on one part after the other."""

    def __init__(self, job: AugmentationJob, parts: int) -> None:
        self.job, self.parts = job, parts
        self.shard = f"ray-{uuid.uuid4().hex}"

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        paragraphs = 0

        def advance(count: int) -> None:
            nonlocal paragraphs
            paragraphs += count

        for part in rows["part"].tolist():
            self.job.run_part(part, self.parts, self.shard, advance)
        return {"paragraphs": np.array([paragraphs])}
