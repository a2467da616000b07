"""Batches of Tile VQA, and which cell a patch lies in."""

from pathlib import Path

import pytest
import torch
from data_vqa.small_clothes import write_small_clothes

from vleff.data.fashion_mnist import read_fashion_mnist
from vleff.data.tile_features import TileCollator, cell_means, cells_of, pixels, tile_tokenizer
from vleff.data.tile_vqa import ANSWERS, TileVqa


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> TileVqa:
    return TileVqa(read_fashion_mnist(write_small_clothes(tmp_path_factory.mktemp("clothes"))), 300)


def test_batches(questions: TileVqa) -> None:
    tokenizer = tile_tokenizer()
    some = [questions[number] for number in range(300)]
    batch = TileCollator(tokenizer, with_cells=True)(some)
    assert batch["pixel_values"].shape == (300, 3, 112, 112) and batch["pixel_mask"].shape == (300, 112, 112)
    assert batch["pixel_values"].amin() == -1 and 0.5 < batch["pixel_values"].amax() <= 1
    assert tokenizer.unk_token_id not in batch["input_ids"]  # it knows all words of all questions
    for row, one in enumerate(some):
        assert tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True) == one.question.replace("?", " ?")
        assert batch["labels"][row].nonzero().tolist() == [[ANSWERS.index(one.answer)]]
        empty = torch.from_numpy(one.grid.classes) < 0
        assert torch.equal(batch["cell_classes"][row] == 10, empty)
        assert torch.equal(batch["cell_colours"][row] == -100, empty)
        assert batch["cell_matters"][row].bool().tolist() == one.matters.tolist()
    assert "cell_classes" not in TileCollator(tokenizer)(some[:2])


@pytest.mark.parametrize("side", [4, 8, 16])
def test_patches_lie_in_cells(side: int, questions: TileVqa) -> None:
    grids = [questions[number].grid for number in range(3)]
    edge = 112 // side
    patches = pixels(grids).unfold(2, edge, edge).unfold(3, edge, edge).flatten(2, 3).transpose(1, 2).flatten(2)
    order = torch.stack([torch.randperm(side * side) for _ in grids])  # ViLT draws them in any order
    cells = cells_of(torch.stack((order // side, order % side), -1), side)
    means = cell_means(patches.gather(1, order[..., None].expand_as(patches)).mean(2, keepdim=True), cells)
    blocks = pixels(grids).unfold(2, 28, 28).unfold(3, 28, 28).flatten(2, 3).transpose(1, 2).flatten(2)
    assert torch.allclose(means, blocks.mean(2, keepdim=True), atol=1e-5)


def test_a_tokenizer_of_whole_words_survives_a_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tile_tokenizer().save_pretrained(tmp_path)
    text = "How many items are red?"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == tile_tokenizer()(text)["input_ids"]
    assert loaded.tokenize(text) == ["how", "many", "items", "are", "red", "?"]
