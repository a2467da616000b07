"""`vleff explain` and the commands of docs/tune.md."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

import vleff
from vleff.bench import tune
from vleff.cli import app

PAGE = (Path(__file__).parents[1] / "docs" / "tune.md").read_text()
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def saved(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_equal_layers_are_shown_once(tmp_path: Path) -> None:
    folder = saved(transformers.BertModel(transformers.BertConfig(vocab_size=50, **SIZES)), tmp_path)
    result = invoke("explain", folder)
    assert result.exit_code == 0, result.output
    assert "3 x encoder.layer.*" in result.output
    assert "packed, attention implementation 'vleff'" in result.output
    assert torch.ops.vleff.cpu_isa() in result.output
    assert "Choice table:" in result.output
    assert "other linear layers" in result.output


def test_both_towers_of_clip_are_shown(tmp_path: Path) -> None:
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config={**SIZES, "vocab_size": 99}, vision_config=vision)
    result = invoke("explain", saved(transformers.CLIPModel(config), tmp_path))
    assert result.exit_code == 0, result.output
    assert "3 x text_model.encoder.layers.*" in result.output
    assert "3 x vision_model.encoder.layers.*" in result.output


def test_model_without_an_adapter_is_explained(tmp_path: Path) -> None:
    config = transformers.FunnelConfig(vocab_size=50, d_model=32, n_head=2, d_head=16, d_inner=32, block_sizes=[1, 1])
    result = invoke("explain", saved(transformers.FunnelModel(config), tmp_path))
    assert result.exit_code == 0, result.output
    assert "as transformers wrote it" in result.output
    assert "there is no adapter for its class" in result.output


def test_report_as_text_shows_equal_layers_once() -> None:
    model = vleff.accelerate(transformers.BertModel(transformers.BertConfig(vocab_size=50, **SIZES)))
    report = vleff.explain(model)
    assert [len(report.encoders[0].layers), len(report.encoders[0].alike())] == [3, 1]
    assert str(report).count("token_gather_attention") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "SHAPES", tune.SHAPES[:2])  # the whole takes most of a minute
    monkeypatch.setattr(tune, "_SECONDS", 0.01)
    program, *arguments = shlex.split(command)
    assert program == "vleff"
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output


def test_page_has_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"explain", "tune"}
