"""Which kernel runs where several compute the same function, read from the measured table `choices.json`.

A choice is a pure function of a layer's shape and dtype. It changes no result: the kernels agree bit for bit.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_suffix(".json")


@cache
def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def packs_weight(out_features: int, in_features: int, dtype: torch.dtype) -> bool:
    """Whether a linear layer gains more than 5 % from a packed weight where it is used.

    From 16 to 8,608 tokens packing gains 4 to 70 % at every shape from 384 x 384 to 3072 x 768, most with few
    tokens. Weights with fewer elements than the table's `least_elements` are lost in the cost of a call.
    """
    entry = _table()["pack_linear_weight"].get(str(dtype).removeprefix("torch."))
    return entry is not None and out_features * in_features >= entry["least_elements"]
