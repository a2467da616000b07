"""Fixtures over the small models of all families, and where real data lies."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from model_cases import Case, encoders, heads, make_case
from transformers import BertModel

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def build_case() -> Callable[..., Case]:
    return make_case


@pytest.fixture(params=encoders(), ids=lambda model_class: model_class.__name__)
def encoder_case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture(params=encoders() + heads(), ids=lambda model_class: model_class.__name__)
def any_case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture
def bert_case() -> Case:
    return make_case(BertModel)


@pytest.fixture(scope="session")
def squad_paragraphs() -> list[str]:
    """48 real paragraphs, one an article."""
    articles = json.loads((TESTS / "data" / "squad_excerpt.json").read_text())["data"]
    return [article["paragraphs"][0]["context"] for article in articles]


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """The folder of larger data sets: VLEFF_DATA or shared/data beside the repository, None if absent."""
    folder = Path(os.environ.get("VLEFF_DATA", TESTS.parents[1] / "shared" / "data"))
    return folder if folder.is_dir() else None
