"""What made a representation, so that stale and foreign ones are refused."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class ForeignRepresentationsError(ValueError):
    """A store holds other representations than those asked for: of another model, or preprocessed otherwise."""


@dataclass(frozen=True)
class RepresentationVersion:
    """What made a representation; vectors can only be compared with those of the same version.

    Attributes:
        modality: "image" or "text".
        weights: SHA-256 of the weights that encode it.
        settings: what else decides about it, by name: of the model and of the preprocessing.
    """

    modality: str
    weights: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RepresentationVersion":
        """The version that `to_dict` made."""
        return cls(**content)

    def check(self, expected: "RepresentationVersion", folder: Path) -> None:
        """Compares the version of a store with the one that is asked for.

        A setting that only one of them has does not count: later versions of a library may know more settings.

        Raises:
            ForeignRepresentationsError: they differ.
        """
        own, other = self.to_dict(), expected.to_dict()
        reason = None
        if own["modality"] != other["modality"]:
            reason = f"holds {own['modality']} representations, expected those of {other['modality']}s"
        elif own["weights"] != other["weights"]:
            reason = (
                f"was encoded with weights {own['weights'][:12]}, expected those of this model, {other['weights'][:12]}"
            )
        else:
            for name in own["settings"].keys() & other["settings"].keys():
                before, now = own["settings"][name], other["settings"][name]
                if before != now:
                    reason = f"was encoded with {name} = {before!r}, expected {now!r}, as this model has it"
        if reason is not None:
            raise ForeignRepresentationsError(f"{folder} {reason}; encode again into a new store")
