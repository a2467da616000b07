"""The examples of docs/smarttrim.md run as they stand, and `explain` says what it promises."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.smarttrim.families import stir, trimmed
from model_cases import make_case
from torch.utils.data import Dataset
from transformers import TrainingArguments, ViltForQuestionAnswering

import vleff
from vleff import smarttrim

PAGE = (Path(__file__).parents[3] / "docs" / "smarttrim.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


class Samples(Dataset):
    def __init__(self, inputs: dict[str, torch.Tensor]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {name: value[number] for name, value in self.inputs.items()}


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Any]:
    """What the examples take from their reader, small."""
    case = make_case(ViltForQuestionAnswering)
    classes = case.model.config.num_labels
    batch = case.inputs | {"labels": torch.rand(4, classes).round()}
    return {
        "vleff": vleff,
        "model": case.model,
        "inputs": case.inputs,
        "samples": Samples(batch),
        "batches": [batch, batch],
        "folder": tmp_path / "model",
        "arguments": TrainingArguments(
            output_dir=str(tmp_path / "training"),
            max_steps=1,
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=True,
        ),
    }


def test_the_examples_run_in_their_order(names, capsys):
    assert len(EXAMPLES) == PAGE.count("```python") == 6
    attaching, training, looping, chance, explaining, kernels = EXAMPLES
    assert len(attaching.strip().splitlines()) <= 7
    exec(attaching, names)
    assert "predicted gain of the layers" in capsys.readouterr().out
    smarttrim.detach(names["model"])
    exec(training, names)
    names["optimizer"] = torch.optim.AdamW(names["model"].parameters(), 1e-4)
    exec(looping, names)
    assert "flop_ratio" in capsys.readouterr().out
    stir(names["model"].eval())
    exec(explaining, names)
    assert "measured gain of the model" in capsys.readouterr().out
    exec(chance, names)
    assert not smarttrim.trimmer_parameters(names["model"])
    exec(kernels, names)
    assert names["head_mask"].any(1).all() and len(names["shorter"]) == names["kept_parts"][-1]


def test_the_config_is_described():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE, re.M)
    described = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    assert described.keys() == smarttrim.SmartTrimConfig().to_dict().keys()


def test_explain_tells_kept_tokens_and_heads_and_gains():
    family = trimmed(ViltForQuestionAnswering)
    assert "did not run yet" in str(vleff.explain(family.model))
    with smarttrim.recorded(family.model) as runs:
        family.outputs()
    text, kept = str(vleff.explain(family.model)), smarttrim.kept_by(family.model, runs)
    assert "measured" not in text
    assert (
        f"{kept.flop_ratio:.3f} of the multiply-adds: predicted gain of the layers {1 / kept.flop_ratio:.2f}x" in text
    )
    for record, one in zip(runs[0].layers, kept.layers, strict=True):
        counts = record.kept().sum(1)
        heads = record.heads["own"].sum(1) if record.heads else torch.full((4,), 4)
        assert one.tokens == counts.tolist() and one.heads["own"] == heads.tolist()
        assert re.search(
            rf"layer {record.layer}: {counts.float().mean():.1f}( \({counts.min()}-{counts.max()}\))? of "
            rf"[\d.]+ tokens; own attention {heads.float().mean():.1f}( \({heads.min()}-{heads.max()}\))? of 4 heads",
            text,
        )
    gain = smarttrim.measure_gain(family.model, family.case.inputs, rounds=2)
    assert gain > 0 and f"measured gain of the model {gain:.2f}x" in str(vleff.explain(family.model))
