"""Galleries answer from the store what the model answers from pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from methods.dide.small_models import preprocessor, saved, student, write_pictures

import vleff
from vleff.dide import ForeignRepresentationsError, Gallery, encode, image_files
from vleff.dide.encoding import prepare

TEXTS = ["what colour is it", "a red picture", "blue"]


def gallery(task: str, tmp_path: Path) -> Gallery:
    write_pictures(tmp_path / "pictures")
    model = saved(student(task), tmp_path / "model")
    from_disk = vleff.accelerate(type(student(task)).from_pretrained(model))
    encode(
        from_disk, preprocessor(), image_files(tmp_path / "pictures"), tmp_path / "store", dtype="float32", quiet=True
    )
    return Gallery.open(model, tmp_path / "store")


def from_pixels(opened: Gallery, folder: Path, ids: list[str]) -> torch.Tensor:
    _, inputs = prepare(opened.preprocessor, "image", [(name, folder / "pictures" / name) for name in ids])
    with torch.no_grad():
        return opened.model.encode_image(**inputs)


def test_one_and_many_texts_against_cached_images(tmp_path: Path) -> None:
    opened = gallery("vqa", tmp_path)
    ids = opened.store.ids()
    with torch.no_grad():
        text = opened.model.encode_text(**opened.preprocessor.texts(TEXTS))
        images = from_pixels(opened, tmp_path, ids)
        expected = opened.model.score(text[:, None], images)
    actual = opened.score_all(TEXTS)
    assert actual.shape == (3, 12, 7)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=2e-5)
    some = [ids[7], ids[2], ids[7]]
    torch.testing.assert_close(opened.score_all(TEXTS, some), actual[:, [7, 2, 7]], atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(opened.score(TEXTS, some), actual[[0, 1, 2], [7, 2, 7]], atol=2e-6, rtol=2e-5)
    assert opened.answer(TEXTS, some) == [f"LABEL_{number}" for number in opened.score(TEXTS, some).argmax(-1)]
    assert torch.equal(opened.score_all(TEXTS[1:2])[0], actual[1])  # texts do not depend on each other
    assert opened.score_all(TEXTS, []).shape == (3, 0, 7)
    with pytest.raises(ValueError, match="expected a model for retrieval, got one for vqa"):
        opened.search(TEXTS)
    with pytest.raises(KeyError, match="has no row 'nothing'"):
        opened.score(TEXTS[:1], ["nothing"])
    with pytest.raises(ValueError, match="argument 'ids': expected an image a text, 3, got 2"):
        opened.score(TEXTS, some[:2])


def test_blocks_of_pairs_do_not_change_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = gallery("vqa", tmp_path)
    whole = opened.score_all(TEXTS)
    monkeypatch.setattr("vleff.dide.gallery._PAIRS", 6)
    assert torch.equal(opened.score_all(TEXTS), whole)
    assert torch.equal(opened.score_all(TEXTS, opened.store.ids()), whole)


def test_two_images_a_text(tmp_path: Path) -> None:
    opened = gallery("nlvr2", tmp_path)
    ids = opened.store.ids()
    first, second = [ids[0], ids[5], ids[3]], [ids[1], ids[5], ids[9]]
    with torch.no_grad():
        text = opened.model.encode_text(**opened.preprocessor.texts(TEXTS))
        both = [from_pixels(opened, tmp_path, some) for some in (first, second)]
        expected = opened.model.score(text, *both)
    torch.testing.assert_close(opened.score(TEXTS, first, second), expected, atol=2e-6, rtol=2e-5)
    with pytest.raises(ValueError, match="argument 'images': expected 2 of nlvr2, got 1"):
        opened.score(TEXTS, first)


def test_search(tmp_path: Path) -> None:
    opened = gallery("retrieval", tmp_path)
    scores = opened.score_all(TEXTS)
    for row, found in zip(scores, opened.search(TEXTS, 5), strict=True):
        order = row.argsort(descending=True, stable=True)[:5]
        assert found.rows.tolist() == order.tolist()
        assert found.ids == [opened.store.ids()[number] for number in order]
    assert np.all(np.abs(found.scores) <= 1 + 1e-5)


def test_stores_of_other_models_are_refused(tmp_path: Path) -> None:
    opened = gallery("vqa", tmp_path)
    torch.manual_seed(9)
    with pytest.raises(ForeignRepresentationsError, match="expected those of this model"):
        Gallery(student("vqa"), preprocessor(), opened.store)
    other = saved(student("vqa"), tmp_path / "other")
    with pytest.raises(ForeignRepresentationsError, match="encode again into a new store"):
        Gallery.open(other, tmp_path / "store")
