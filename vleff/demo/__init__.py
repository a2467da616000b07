"""`vleff demo`: a small trained model and held-out questions, so that accuracy, speed and pictures need no network."""

import json
from importlib.resources import files
from typing import Any

DATA, FIGURES = "data", "figures.json"


def recorded_figures() -> dict[str, Any]:
    """What was measured when the demo's models were trained."""
    return json.loads((files(__name__) / DATA / FIGURES).read_text(encoding="utf-8"))
