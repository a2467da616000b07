"""One small attached model of each family."""

import pytest
from methods.smarttrim.families import MODELS, Trimmed, trimmed


@pytest.fixture(params=MODELS, ids=lambda model_class: model_class.__name__)
def family(request: pytest.FixtureRequest) -> Trimmed:
    return trimmed(request.param)
