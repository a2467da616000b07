"""`vleff tune` and the table of choices: what is measured, written, read, refused, and that no result depends on it."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import hear_interruptions
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

import vleff
from vleff import choices, doctor
from vleff.bench import tune, tune_masked
from vleff.bench.timing import Comparison
from vleff.cli import app
from vleff.nn.fused_linear import FusedLinear
from vleff.ops.fused_linear import packs_linear_weight

QUICK_SPARSE = {"SHAPES": ((128, 64),), "DENSITIES": (0.3, 0.6), "ROWS": (16,), "_SECONDS": 0.01}
QUICK = {"SHAPES": ((32, 16), (64, 64)), "ROWS": (16,), "_SECONDS": 0.001, "_LEAST_ROUNDS": 6}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table, which does not exist yet and is the only one that is looked for."""
    file = tmp_path / "config" / "vleff" / "choices.json"
    monkeypatch.delenv("VLEFF_CHOICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    choices.table.cache_clear()
    yield file
    choices.table.cache_clear()


def content(**changes: Any) -> dict[str, Any]:
    machine = choices.this_machine()
    choice = {"float32": {"least_elements": 100}, "bfloat16": None}
    return {"schema": 1, "machine": machine, "pack_linear_weight": choice} | changes


def read(file: Path, text: str) -> choices.Table:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    choices.table.cache_clear()
    return choices.table()


def run_quickly(monkeypatch: pytest.MonkeyPatch, *options: object) -> Result:
    for name, value in QUICK.items():
        monkeypatch.setattr(tune, name, value)
    for name, value in QUICK_SPARSE.items():
        monkeypatch.setattr(tune_masked, name, value)
    return CliRunner().invoke(app, ["tune", *map(str, options)], env={"COLUMNS": "120"})


def test_without_a_file_the_committed_table_is_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choices.table().path == choices.COMMITTED
    committed = {name: entry for name, entry in choices.table().content.items() if name != "levels"}
    assert choices.misfit(committed | {"machine": choices.this_machine()}) is None
    assert "an entry levels" in str(choices.misfit(choices.table().content | {"machine": choices.this_machine()}))
    assert choices.packs_weight(128, 128, torch.float32)
    assert not choices.packs_weight(127, 128, torch.float32)
    assert not choices.packs_weight(4096, 4096, torch.float64)


def test_a_table_of_this_machine_is_used(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path, json.dumps(content())).path == path
    assert choices.packs_weight(10, 10, torch.float32)
    assert not choices.packs_weight(9, 11, torch.float32)
    assert not choices.packs_weight(4096, 4096, torch.bfloat16)


def test_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLEFF_CHOICES", str(tmp_path / "mine.json"))
    assert read(tmp_path / "mine.json", json.dumps(content())).path == tmp_path / "mine.json"


def test_a_named_file_that_is_missing_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLEFF_CHOICES", str(tmp_path / "nowhere.json"))
    with pytest.warns(UserWarning, match=r"nowhere\.json is not used.*No such file"):
        assert choices.table().path == choices.COMMITTED


def on_another(**changes: Any) -> str:
    return json.dumps(content(machine=choices.this_machine() | changes))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "no choice table of schema 1"),
        (json.dumps(content(schema=2)), "no choice table of schema 1"),
        (json.dumps(content(pack_linear_weight=[])), "pack_linear_weight is not as expected"),
        (json.dumps(content(pack_linear_weight={"float32": {}})), "pack_linear_weight is not as expected"),
        (json.dumps(content(pack_linear_weight={"float32": {"least_elements": -1}})), "not as expected"),
        (json.dumps(content(pack_linear_weight={"float32": {"least_elements": True}})), "not as expected"),
        (json.dumps(content(masked_linear=[])), "masked_linear is not as expected"),
        (json.dumps(content(masked_linear={"float32": {"densest": 2}})), "masked_linear is not as expected"),
        (json.dumps(content(machine=None)), "it was measured with processor None, here it is"),
        (on_another(processor="abacus"), "it was measured with processor abacus, here it is"),
        (on_another(instruction_set="mmx"), "it was measured with instruction set mmx, here it is"),
        (on_another(threads=1000), "it was measured with threads 1000, here it is"),
        ("\udcff", "codec can't decode"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_a_warning(path: Path, text: str, reason: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=reason):
        table = choices.table()
    assert table.path == choices.COMMITTED
    assert choices.packs_weight(128, 128, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        choices.packs_weight(128, 128, torch.bfloat16)
    check = doctor._choice_table()
    assert check.status == "warning"
    assert str(path) in check.detail
    assert "vleff tune" in check.hint


def test_doctor_and_explain_name_the_table(path: Path) -> None:
    assert doctor._choice_table().detail == "the one that comes with vleff"
    read(path, json.dumps(content()))
    assert doctor._choice_table().detail == f"measured on this machine ({path})"
    assert str(path) in str(vleff.explain(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_result_depends_on_the_table(path: Path, dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 256}
    torch.manual_seed(0)
    plain = BertModel(BertConfig(vocab_size=50, **sizes)).eval().to(dtype).requires_grad_(False)
    ids = torch.randint(5, 50, (3, 21))
    mask = (torch.arange(21) < torch.tensor([[21], [4], [13]])).long()
    outputs, packed = [], []
    for entry in (None, {"least_elements": 40000}, {"least_elements": 0}):
        table = {str(dtype).removeprefix("torch."): entry}
        read(path, json.dumps(content(pack_linear_weight=table)))
        model = vleff.accelerate(copy.deepcopy(plain))
        with torch.inference_mode():
            outputs.append(model(ids, attention_mask=mask).last_hidden_state)
        packed.append(sum(isinstance(m, FusedLinear) and m.is_packed for m in model.modules()))
    # none, the feed-forward blocks, all; oneDNN packs no bfloat16 on processors without instructions for it
    assert packed == ([0, 4, 13] if packs_linear_weight(dtype) else [0, 0, 0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def measurements(*gains: float) -> list[tune.Measurement]:
    return [
        tune.Measurement("float32", (2**i, 8), {16: Comparison(gain, None, None, 6), 64: Comparison(1, None, None, 6)})
        for i, gain in enumerate(gains)
    ]


@pytest.mark.parametrize(
    ("gains", "least"),
    [
        ((1.0, 1.2, 1.3), 16),
        ((1.2, 1.2, 1.2), 8),
        ((1.5, 1.0, 1.2), 32),  # what gains only by chance in between does not count
        ((1.5, 1.5, 1.1), None),  # geometric mean with the other number of rows: 1.049
        ((), None),
    ],
)
def test_threshold_is_where_all_larger_weights_gain(gains: tuple[float, ...], least: int | None) -> None:
    assert tune.least_elements(measurements(*gains)) == least


@pytest.mark.parametrize(
    ("gains", "densest"),
    [((2.0, 1.5, 1.0), 0.5), ((2.0, 0.5, 1.1), 0.35), ((2.0, 1.0, 0.9), 0.4), ((0.9, 1.0, 1.0), 0.0)],
)
def test_products_are_sparse_up_to_the_first_density_that_loses(gains: tuple[float, ...], densest: float) -> None:
    measured = [
        tune_masked.SparseMeasurement("float32", density, {((8, 8), 16): Comparison(gain, None, None, 8)})
        for gain, density in zip(gains, (0.3, 0.4, 0.5), strict=True)
    ]
    assert tune_masked.densest(measured[::-1]) == densest
    assert tune_masked.as_choices(measured)["float16"] == {"densest": densest}


def test_an_older_table_leaves_sparse_products_to_the_committed_one(path: Path) -> None:
    committed = choices.densest_sparse()
    read(path, json.dumps(content()))
    assert choices.table().path == path and choices.densest_sparse() == committed
    read(path, json.dumps(content(masked_linear={"float32": {"densest": 0.25}})))
    assert choices.densest_sparse() == {torch.float32: 0.25}


def test_with_amx_dense_products_in_bfloat16_are_faster_from_fewer_zeros_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def densest(level: str) -> float:
        monkeypatch.setattr(choices.torch.ops.vleff, "cpu_isa", lambda: level)
        return choices.densest_sparse()[torch.bfloat16]

    assert densest("amx_bf16") < 0.1 < densest("avx512_bf16")


def test_command_writes_a_table_that_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_quickly(monkeypatch)
    assert result.exit_code == 0, result.output
    assert f"Wrote {path}" in result.output
    assert "VLEFF_CHOICES" not in result.output
    written = json.loads(path.read_text())
    assert choices.table() == choices.Table(path, written)
    dtypes = [d for d in ("float32", "bfloat16") if torch.ops.vleff.packs_linear_weight(getattr(torch, d))]
    assert list(written["pack_linear_weight"]) == dtypes
    assert len(written["measured"]) == 2 * len(dtypes)
    assert all(one["low"] <= one["high"] for one in written["measured"])
    assert all(0 <= written["masked_linear"][dtype]["densest"] <= 0.6 for dtype in (*dtypes, "float16"))
    assert len(written["measured_masked_linear"]) == 2 * len(dtypes)
    for dtype in dtypes:
        assert f"{dtype}: packs" in result.output and f"{dtype}: sparse from" in result.output
    assert [file.name for file in path.parent.iterdir()] == ["choices.json"]


def test_previous_table_is_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.json"
    file.write_text("precious")
    result = run_quickly(monkeypatch, "--output", file)
    assert result.exit_code == 0, result.output
    assert f"VLEFF_CHOICES={file}" in result.output
    assert (tmp_path / "mine.json.bak").read_text() == "precious"
    assert choices.misfit(json.loads(file.read_text())) is None
    assert not path.exists()


def test_output_that_cannot_be_written_is_named_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "measure", None)
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path, tmp_path / "file" / "choices.json"):
        result = CliRunner().invoke(app, ["tune", "--output", str(output)])
        assert result.exit_code == 2
        assert str(output.parent) in result.output.replace("\n", "")
    assert (tmp_path / "file").read_text() == "in the way"


def test_interruption_leaves_everything_as_it_was(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content()))
    process = subprocess.Popen(
        [sys.executable, "-m", "vleff.cli", "tune"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ,
        preexec_fn=hear_interruptions,
    )
    deadline = time.monotonic() + 60
    while len(list(path.parent.iterdir())) == 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # into the measurement
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert b"nothing was written" in output
    assert b"Traceback" not in output
    assert json.loads(path.read_text()) == content()
    assert [file.name for file in path.parent.iterdir()] == ["choices.json"]
