"""Encoding jobs: complete, resumable, by several processes, refused where the store is another model's."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods.dide.small_models import preprocessor, saved, student, write_pictures

import vleff
from vleff.dide import (
    DualEncoder,
    ForeignRepresentationsError,
    Preprocessor,
    RepresentationStore,
    encode,
    encode_with_ray,
    image_files,
)
from vleff.dide.encoding import prepare


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    return vleff.accelerate(student("vqa"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures")
    return tmp_path / "pictures"


def expected_rows(model: DualEncoder, folder: Path, ids: list[str]) -> np.ndarray:
    """One image at a time."""
    rows = []
    for name in ids:
        _, inputs = prepare(preprocessor(), "image", [(name, folder / name)])
        with torch.no_grad():
            rows.append(model.encode_image(**inputs))
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gallery_is_encoded_bit_for_bit(
    model: DualEncoder, pictures: Path, tmp_path: Path, dtype: str, workers: int
) -> None:
    items = image_files(pictures)
    assert [name for name, _ in items] == sorted(name for name, _ in items) and len(items) == 12
    store = encode(model, preprocessor(), items, tmp_path / "store", dtype=dtype, batch=5, workers=workers, quiet=True)
    assert store.ids() == [name for name, _ in items] and store.dtype == dtype
    expected = expected_rows(model, pictures, store.ids())
    assert np.array_equal(store[np.arange(12)], expected.astype(dtype))


def test_texts_are_encoded_too(model: DualEncoder, tmp_path: Path) -> None:
    items = [(text, text) for text in ("what colour is it", "a red picture", "blue")]
    store = encode(model, preprocessor(), items, tmp_path, "text", dtype="float32", batch=2, quiet=True)
    with torch.no_grad():
        expected = model.encode_text(**preprocessor().texts([text for text, _ in items]))
    assert np.array_equal(store[store.rows(text for text, _ in items)], expected.numpy())
    with pytest.raises(ForeignRepresentationsError, match="holds text representations, expected those of images"):
        RepresentationStore(tmp_path, preprocessor().version(model, "image"))


def test_what_is_there_is_not_encoded_again(
    model: DualEncoder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, seen = image_files(pictures), []
    tower = model.encode_image

    def interrupted(**inputs: Any) -> torch.Tensor:
        seen.append(len(inputs["pixel_values"]))
        if sum(seen) > 7:
            raise KeyboardInterrupt
        return tower(**inputs)

    monkeypatch.setattr("vleff.dide.encoding.SECONDS_BETWEEN_APPENDS", 0.0)
    model.encode_image = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            encode(model, preprocessor(), items, tmp_path / "store", batch=3, quiet=True)
    finally:
        del model.encode_image
    assert len(RepresentationStore(tmp_path / "store")) == 6
    assert len(encode(model, preprocessor(), items[:4], tmp_path / "store", quiet=True)) == 6
    store = encode(model, preprocessor(), items, tmp_path / "store", quiet=True)
    assert sorted(store.ids()) == [name for name, _ in items]
    expected = expected_rows(model, pictures, store.ids()).astype(np.float16)
    assert np.array_equal(store[np.arange(12)], expected)


def test_other_weights_or_settings_are_refused(model: DualEncoder, pictures: Path, tmp_path: Path) -> None:
    items, made = image_files(pictures)[:2], preprocessor()
    encode(model, made, items, tmp_path / "store", quiet=True)
    version = made.version(model, "image")
    assert version == made.version(vleff.restore(model), "image") == made.version(vleff.accelerate(model), "image")
    model.head.fusion.output.bias.data += 1  # the head is no part of a representation
    assert version == made.version(model, "image")
    other = student("vqa")
    other.load_state_dict(model.state_dict())
    assert version == made.version(other, "image")
    with torch.no_grad():
        other.image_model.layernorm.weight[3] += 1e-6
    with pytest.raises(ForeignRepresentationsError, match=r"was encoded with weights .* expected those of this model"):
        encode(other, made, items, tmp_path / "store", quiet=True)
    assert made.version(model, "text") == made.version(other, "text")
    other.load_state_dict(model.state_dict())
    other.config.image_config.layer_norm_eps = 1e-3
    with pytest.raises(ForeignRepresentationsError, match=r"tower.layer_norm_eps = 1e-12, expected 0.001"):
        encode(other, made, items, tmp_path / "store", quiet=True)
    made.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ForeignRepresentationsError, match=r"preprocessing.image_mean = \[0.5, 0.5, 0.5\], expected"):
        encode(model, made, items, tmp_path / "store", quiet=True)
    with pytest.raises(ValueError, match="'modality': expected image or text, got 'sound'"):
        made.version(model, "sound")
    shorter = Preprocessor(made.tokenizer, made.image_processor, 7)
    assert shorter.version(model, "text") != made.version(model, "text")
    made.texts(["a call changes the tokenizer's settings"])
    assert preprocessor().version(model, "text") == made.version(model, "text")


def test_bad_images_are_named(model: DualEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected images .* found none"):
        image_files(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png: expected an image, got"):
        encode(model, preprocessor(), image_files(tmp_path), tmp_path / "store", quiet=True)


def test_several_processes_by_torchrun(model: DualEncoder, pictures: Path, tmp_path: Path) -> None:
    folder = saved(vleff.restore(model), tmp_path / "model")
    vleff.accelerate(model)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "vleff.cli", "dide", "encode", str(folder), str(pictures), "--store", str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    store = RepresentationStore(tmp_path / "store", preprocessor().version(model, "image"))
    names = [name for name, _ in image_files(pictures)]
    assert store.ids() == names[::2] + names[1::2]
    assert np.array_equal(store[np.arange(12)], expected_rows(model, pictures, store.ids()).astype(np.float16))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray of two processors, whose workers find vleff and are as nice as this process."""
    found = pytest.importorskip("ray", reason="Ray is optional")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    variables = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"}
    found.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield found
    found.shutdown()


def test_several_machines_by_ray(ray: Any, model: DualEncoder, pictures: Path, tmp_path: Path) -> None:
    folder = saved(vleff.restore(model), tmp_path / "model")
    vleff.accelerate(model)
    items = image_files(pictures)
    assert len(encode_with_ray(folder, items[:5], tmp_path / "store", batch=2)) == 5
    store = encode_with_ray(folder, items, tmp_path / "store", batch=2, actors=2)  # on all processors
    assert sorted(store.ids()) == [name for name, _ in items]
    assert np.array_equal(store[np.arange(12)], expected_rows(model, pictures, store.ids()).astype(np.float16))


def test_a_ray_worker_is_killed(ray: Any, model: DualEncoder, pictures: Path, tmp_path: Path) -> None:
    """It is replaced; no row is lost or there twice."""
    folder = saved(vleff.restore(model), tmp_path / "model")
    version = preprocessor().version(vleff.accelerate(model), "image")
    files = image_files(pictures)
    items = [(f"{number:03d}", files[number % len(files)][1]) for number in range(400)]
    killed: list[int] = []

    def kill_one() -> None:
        while not killed and time.monotonic() < end:
            time.sleep(0.02)
            if (tmp_path / "store").exists() and len(RepresentationStore(tmp_path / "store", version)) > 20:
                killed.append(encoding_worker())
                os.kill(killed[0], signal.SIGKILL)

    end = time.monotonic() + 100
    killer = threading.Thread(target=kill_one)
    killer.start()
    store = encode_with_ray(folder, items, tmp_path / "store", batch=2, actors=2)
    killer.join()
    assert killed
    assert sorted(store.ids()) == [name for name, _ in items]
    assert len(store) == 400
    rows = dict(zip(files, expected_rows(model, pictures, [name for name, _ in files]), strict=True))
    paths = {path: row for (_, path), row in rows.items()}
    expected = np.stack([paths[path] for _, path in (items[int(name)] for name in store.ids())])
    assert np.array_equal(store[np.arange(400)], expected.astype(np.float16))


def encoding_worker() -> int:
    """The process number of an actor that encodes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(b"ray::") and b"_Encoder" in command:
            return int(path.parent.name)
    raise AssertionError("no actor encodes")


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r"pip install 'ray\[data\]'"):
        encode_with_ray(tmp_path, [], tmp_path)
