import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import hear_interruptions
from typer.testing import CliRunner, Result

from vleff.bench import engines
from vleff.cli import app

ONE_THREAD = ("--threads", "1")  # small models suffer from threads that wait for busy cores
QUICK = ("--batch", "2", "--dtype", "fp32", "--budget", "0.05", *ONE_THREAD)
COMMAND = [sys.executable, "-m", "vleff.cli"]


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


def words(result: Result) -> str:
    """The output without its line breaks."""
    return " ".join(result.output.split())


def only_json(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_bench_measures_text(tiny_bert: Path, tmp_path: Path) -> None:
    options = ("--batch", "1,3", "--budget", 0.05, *ONE_THREAD, "--output", tmp_path)
    result = invoke("bench", "--model", tiny_bert, *options)
    assert result.exit_code == 0, result.output
    assert "weights of" in result.output
    assert "SQuAD paragraphs" in result.output
    content = only_json(tmp_path)
    assert content["complete"] is True
    assert [(cell["dtype"], cell["batch"]) for cell in content["cells"]] == [
        ("fp32", 1),
        ("fp32", 3),
        ("bf16", 1),
        ("bf16", 3),
    ]
    for cell in content["cells"]:
        assert set(cell["times"]) == {"dense", "vleff"}
        assert cell["rounds"] >= 6
        assert cell["matches"]["vleff"]["ok"], cell
        assert cell["speedup"]["dense"]["low"] <= cell["speedup"]["dense"]["high"]
        assert (cell["flop_ratio"] > 1) == (cell["batch"] > 1)
    assert result.output.count("✓") == 4
    assert max(len(line) for line in result.output.splitlines() if "fp32" in line) <= 80


def test_bench_measures_photos(tiny_vit: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    result = invoke("bench", "--model", tiny_vit, *QUICK, "--output", tmp_path, "--seed", 3)
    assert result.exit_code == 0, result.output
    (cell,) = only_json(tmp_path)["cells"]
    assert cell["matches"]["vleff"]["ok"]
    assert cell["flop_ratio"] == 1
    assert (cell["mean_length"], cell["padded_length"]) == (17, 17)


def test_bench_measures_questions_with_photos(tiny_vilt: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    options = ("--batch", "1,3", "--budget", 0.05, *ONE_THREAD, "--output", tmp_path)
    result = invoke("bench", "--model", tiny_vilt, *options)
    assert result.exit_code == 0, result.output
    assert "SQuAD questions" in words(result)
    assert "in mixed sizes" in words(result)
    content = only_json(tmp_path)
    assert [(cell["dtype"], cell["batch"]) for cell in content["cells"]] == [
        ("fp32", 1),
        ("fp32", 3),
        ("bf16", 1),
        ("bf16", 3),
    ]
    for cell in content["cells"]:
        assert cell["matches"]["vleff"]["ok"], cell
        assert (cell["flop_ratio"] > 1) == (cell["batch"] > 1)
        assert (cell["padded_length"] > cell["mean_length"]) == (cell["batch"] > 1)


def test_engine_that_cannot_convert_the_model_is_reported(
    tiny_vilt: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    pytest.importorskip("onnx", reason="onnx is optional")
    options = ("--against", "onnxruntime", "--images", "square", "--output", tmp_path)
    result = invoke("bench", "--model", tiny_vilt, *QUICK, *options)
    assert result.exit_code == 0, result.output
    assert "384 x 384 pixels" in words(result)
    content = only_json(tmp_path)
    assert set(content["cells"][0]["times"]) == {"dense", "vleff"}
    assert "cannot be converted to ONNX" in content["unavailable"]["onnxruntime (fp32)"]
    assert len(content["unavailable"]["onnxruntime (fp32)"]) < 400
    assert "cannot be converted to ONNX" in words(result)
    assert "scope: " not in capfd.readouterr().out  # the exporter's graph


def test_engine_that_fails_on_a_batch_is_left_out_there(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_one_shape(model: torch.nn.Module, example: engines.Inputs) -> engines.Engine:
        def run(inputs: engines.Inputs) -> engines.HiddenStates:
            if inputs["input_ids"].shape != example["input_ids"].shape:
                raise RuntimeError("made for\nanother shape")
            return engines.dense(model, example)(inputs)

        return run

    monkeypatch.setitem(engines.OTHERS, "compile", of_one_shape)
    result = invoke(
        "bench", "--model", tiny_bert, *QUICK, "--batch", "1,8", "--against", "compile", "--output", tmp_path
    )
    assert result.exit_code == 0, result.output
    content = only_json(tmp_path)
    assert [set(cell["times"]) for cell in content["cells"]] == [{"dense", "vleff"}, {"dense", "vleff", "compile"}]
    assert content["unavailable"] == {"compile (fp32, batch 1)": "it fails: made for another shape"}


def test_bench_against_another_engine(tiny_vit: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is optional")
    pytest.importorskip("PIL", reason="photos need Pillow")
    result = invoke("bench", "--model", tiny_vit, *QUICK, "--output", tmp_path, "--against", "openvino")
    assert result.exit_code == 0, result.output
    (cell,) = only_json(tmp_path)["cells"]
    assert set(cell["speedup"]) == {"dense", "openvino"}
    assert "openvino" in result.output


def test_engine_that_is_not_installed_is_reported(
    tiny_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("bench", "--model", tiny_vit, *QUICK, "--output", tmp_path, "--against", "openvino")
    assert result.exit_code == 0, result.output
    assert "pip install openvino" in words(result)
    assert "pip install matplotlib, or vleff[bench]" in words(result)
    assert set(only_json(tmp_path)["cells"][0]["times"]) == {"dense", "vleff"}


def test_two_runs_keep_two_results_and_figures(tiny_vit: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures are optional")
    pytest.importorskip("PIL", reason="photos need Pillow")
    for _ in range(2):
        assert invoke("bench", "--model", tiny_vit, *QUICK, "--output", tmp_path).exit_code == 0
    files = sorted(tmp_path.iterdir())
    assert sorted(file.suffix for file in files) == [".json", ".json", ".png", ".png"]
    assert {file.stem for file in files if file.suffix == ".json"} == {
        file.stem for file in files if file.suffix == ".png"
    }
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files if file.suffix == ".png")


def test_interruption_keeps_what_was_measured(tiny_bert: Path, tmp_path: Path) -> None:
    batches = ",".join(str(batch) for batch in range(1, 60))
    options = ["--dtype", "fp32", "--batch", batches, "--budget", "0.5", "--output", str(tmp_path)]
    process = subprocess.Popen(
        [*COMMAND, "bench", "--model", str(tiny_bert), *ONE_THREAD, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
        preexec_fn=hear_interruptions,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        files = list(tmp_path.glob("*.json"))
        if files and json.loads(files[0].read_text())["cells"]:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    content = only_json(tmp_path)
    assert content["complete"] is False
    assert 1 <= len(content["cells"]) < 59
    assert all(cell["rounds"] >= 1 for cell in content["cells"])
    assert f"Wrote {tmp_path}" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "fp8"), "dtype: expected some of fp32, bf16, got 'fp8'"),
        (("--dtype", ","), "dtype: expected at least one"),
        (("--batch", "1,x"), "batch: expected whole numbers separated by commas, got '1,x'"),
        (("--batch", "0"), "batch: expected sizes of at least 1, got [0]"),
        (("--batch", ""), "batch: expected sizes of at least 1, got []"),
        (("--against", "tvm"), "against: expected some of compile, openvino, onnxruntime, got 'tvm'"),
        (("--budget", "0"), "budget: expected a positive number of seconds"),
        (("--threads", "0"), "threads: expected at least 1, got 0"),
        (("--images", "round"), "images: expected mixed or square, got 'round'"),
        (("--data", "nowhere.json"), "data: nowhere.json does not exist"),
        (("--photos", "nowhere"), "photos: nowhere does not exist"),
    ],
)
def test_bad_options_are_named(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = invoke("bench", *options, "--output", tmp_path)
    assert result.exit_code == 2
    assert message in words(result)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_to_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = invoke("bench", "--model", tiny_bert, "--output", tmp_path / "file")
    assert result.exit_code == 2
    assert str(tmp_path / "file") in result.output


def test_explain(tiny_bert: Path) -> None:
    result = invoke("explain", tiny_bert)
    assert result.exit_code == 0, result.output
    assert "weights of" in result.output
    assert "token_gather_attention" in result.output


def test_explain_of_a_missing_model(tmp_path: Path) -> None:
    result = invoke("explain", tmp_path)
    assert result.exit_code == 2
    assert "model: expected one of" in words(result)


def test_doctor() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    assert "torch" in result.output
