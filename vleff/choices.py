"""Which kernel runs where several compute the same function, read from a measured table.

The table is the committed `choices.json`, or the one that `vleff tune` measured on this machine. A choice is a
pure function of a layer's shape, dtype and share of zeros. Whether a weight is packed changes no bit; whether a product
is sparse or dense changes its rounding.
"""

import json
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vleff.machine import processor

COMMITTED = Path(__file__).with_suffix(".json")
SCHEMA = 1


@dataclass(frozen=True)
class Table:
    """The table in use.

    Attributes:
        path: its file.
        content: what the file holds.
        refused: why a file of the user is not used; None if it is, or if there is none.
    """

    path: Path
    content: dict[str, Any]
    refused: str | None = None

    def __str__(self) -> str:
        return "the one that comes with vleff" if self.path == COMMITTED else f"measured on this machine ({self.path})"


def user_file() -> Path:
    """Where the user's table is: $VLEFF_CHOICES, otherwise vleff/choices.json in $XDG_CONFIG_HOME or ~/.config."""
    named = os.environ.get("VLEFF_CHOICES")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vleff" / "choices.json"


@cache
def table() -> Table:
    """The user's table if it fits this machine, otherwise the committed one; read when first asked for.

    Warns where there is a user's table that does not fit or cannot be read.
    """
    path, committed = user_file(), json.loads(COMMITTED.read_text(encoding="utf-8"))
    if not path.exists() and not os.environ.get("VLEFF_CHOICES"):
        return Table(COMMITTED, committed)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        reason = misfit(content)
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason is None:
        return Table(path, content)
    warnings.warn(
        f"the choice table {path} is not used, but the one that comes with vleff: {reason}. "
        "`vleff tune` measures a new one; results are the same with any.",
        stacklevel=2,
    )
    return Table(COMMITTED, committed, f"{path}: {reason}")


def misfit(content: Any) -> str | None:
    """Why a table cannot be used on this machine; None if it can."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return f"it is no choice table of schema {SCHEMA}"
    entries = content.get("pack_linear_weight")
    if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
        return "its entry pack_linear_weight is not as expected"
    if "levels" in content:
        return "it has an entry levels, which only the one that comes with vleff may have"
    sparse = content.get("masked_linear", {})
    if not isinstance(sparse, dict) or not all(_is_share(entry) for entry in sparse.values()):
        return "its entry masked_linear is not as expected"
    recorded = content.get("machine")
    for name, here in this_machine().items():
        there = recorded.get(name) if isinstance(recorded, dict) else None
        if there != here:
            return f"it was measured with {name.replace('_', ' ')} {there}, here it is {here}"
    return None


def this_machine() -> dict[str, Any]:
    """What a table depends on."""
    import vleff._library  # noqa: F401  registers the ops

    return {
        "processor": processor(),
        "instruction_set": torch.ops.vleff.cpu_isa(),
        "threads": torch.get_num_threads(),
    }


def packs_weight(out_features: int, in_features: int, dtype: torch.dtype) -> bool:
    """Whether a linear layer gains more than 5 % from a packed weight where it is used.

    On the machine of the committed table packing gains 4 to 70 % from 16 to 8,608 tokens at every shape from
    384 x 384 to 3072 x 768, most with few tokens. Weights with fewer elements than the table's
    `least_elements` are lost in the cost of a call.
    """
    entry = table().content["pack_linear_weight"].get(str(dtype).removeprefix("torch."))
    return entry is not None and out_features * in_features >= entry["least_elements"]


def densest_sparse() -> dict[torch.dtype, float]:
    """By dtype, the largest share of elements with which a linear layer is faster sparse than dense.

    A table that was measured before there was such an entry leaves it to the committed one, which has others for
    instruction-set levels with faster dense products.
    """
    content = table().content
    if not content.get("masked_linear"):
        content = json.loads(COMMITTED.read_text(encoding="utf-8"))
    level = content.get("levels", {}).get(torch.ops.vleff.cpu_isa(), content)
    entries = level["masked_linear"]
    return {getattr(torch, name): entry["densest"] for name, entry in entries.items()}


def _is_entry(entry: Any) -> bool:
    """None, or an object with one whole number."""
    least = entry.get("least_elements") if isinstance(entry, dict) else None
    return entry is None or (type(least) is int and least >= 0)


def _is_share(entry: Any) -> bool:
    """An object with a number from 0 to 1."""
    densest = entry.get("densest") if isinstance(entry, dict) else None
    return isinstance(densest, int | float) and 0 <= densest <= 1
