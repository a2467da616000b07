"""The README's examples run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import make_case
from transformers import BertConfig, BertForQuestionAnswering, ViltForQuestionAnswering

import vleff

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Any]:
    """What the examples take from their reader, small."""
    config = BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128)
    directory = tmp_path / "model"
    BertForQuestionAnswering(config).save_pretrained(directory)
    make_case(ViltForQuestionAnswering, num_labels=7).model.save_pretrained(tmp_path / "vilt")
    ends = torch.tensor([2, 3])
    tokens = torch.randint(5, 1000, (2, 9))
    return {
        "torch": torch,
        "vleff": vleff,
        "BertForQuestionAnswering": BertForQuestionAnswering,
        "directory": directory,
        "elsewhere": tmp_path / "copy",
        "ViltForQuestionAnswering": ViltForQuestionAnswering,
        "vilt": tmp_path / "vilt",
        "trimmed": tmp_path / "trimmed",
        "questions": {"input_ids": tokens % 99, "pixel_values": torch.randn(2, 3, 40, 40), "labels": torch.rand(2, 7)},
        "offsets": torch.tensor([0, 5, 17], dtype=torch.int32),
        "batch": {"input_ids": tokens, "start_positions": ends - 1, "end_positions": ends},
        "padded": torch.randn(2, 5, 8),
        "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "scores": torch.rand(8),
        "threshold": 0.5,
        "linear": torch.nn.Linear(8, 8),
        "tokens": torch.randn(3, 8),
        "weight": torch.randn(6, 8),
        "bias": torch.randn(6),
    }


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == README.count("```python")
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.strip().splitlines()[0])
def test_example_runs(example: str, names: dict[str, Any]) -> None:
    hub_name = '"deepset/roberta-base-squad2"'  # a hub is out of reach of tests
    exec(example.replace(hub_name, "directory"), names)
