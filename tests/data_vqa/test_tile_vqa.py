"""Tile VQA's answers, derived again from what the grids hold."""

import re
from collections import Counter

import numpy as np
import pytest
from data_vqa.small_clothes import REAL, write_small_clothes

from vleff.data.fashion_mnist import ClothesPictures, read_fashion_mnist
from vleff.data.tile_grid import CELLS, CLASSES, COLOURS, EMPTY, NUMBERS, Clothes, Grid
from vleff.data.tile_vqa import ANSWERS, KINDS, TileDescriptions, TileStatements, TileVqa


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> ClothesPictures:
    return read_fashion_mnist(write_small_clothes(tmp_path_factory.mktemp("clothes")))


def answer_of(question: str, grid: Grid) -> tuple[str, set[int]]:
    """The answer, and the cells it follows from."""
    items = [(int(c), CLASSES[grid.classes[c]], COLOURS[grid.colours[c]]) for c in grid.filled]
    if found := re.fullmatch(r"what colour is the (\w+)\?", question):
        ((cell, _, colour),) = [item for item in items if item[1] == found[1]]
        return colour, {cell}
    if found := re.fullmatch(r"what is the (\w+) item\?", question):
        ((cell, name, _),) = [item for item in items if item[2] == found[1]]
        return name, {cell}
    if found := re.fullmatch(r"how many items are (\w+)\?", question):
        cells = {cell for cell, _, colour in items if colour == found[1]}
        return NUMBERS[len(cells) - 1], cells
    if found := re.fullmatch(r"is there a (\w+)\?", question):
        cells = {cell for cell, name, _ in items if name == found[1]}
        return "yes" if cells else "no", cells
    found = re.fullmatch(r"what is in row (\w+) column (\w+)\?", question)
    assert found, question
    cell = 4 * NUMBERS.index(found[1]) + NUMBERS.index(found[2])
    return next(name for place, name, _ in items if place == cell), {cell}


def test_answers_follow_from_the_grids(clothes: ClothesPictures) -> None:
    questions = TileVqa(clothes, 2000)
    kinds, answers = Counter(), Counter()
    for number in range(len(questions)):
        one = questions[number]
        answer, cells = answer_of(one.question, one.grid)
        assert one.answer == answer and set(np.flatnonzero(one.matters)) == cells
        assert 5 <= len(one.grid.filled) <= 9
        assert np.array_equal(one.grid.classes == EMPTY, one.grid.colours == EMPTY)
        kinds[one.kind] += 1
        answers[one.answer] += 1
    assert set(answers) == set(ANSWERS) and len(ANSWERS) == 22
    assert all(320 < kinds[kind] < 480 for kind in KINDS)
    assert 0.8 < answers["yes"] / answers["no"] < 1.25  # balanced
    assert max(answers.values()) < 0.15 * 2000  # a model that sees nothing is right this often at most


def test_pictures_show_what_is_said(clothes: ClothesPictures) -> None:
    grid = TileVqa(clothes, 1)[0].grid
    assert grid.picture.shape == (112, 112, 3)
    for cell in range(CELLS):
        row, column = cell // 4 * 28, cell % 4 * 28
        pixels = grid.picture[row : row + 28, column : column + 28]
        if grid.classes[cell] == EMPTY:
            assert not pixels.any()
            continue
        bar = pixels[2 * grid.classes[cell] + 3 : 2 * grid.classes[cell] + 7, 4:24].reshape(-1, 3).mean(0)
        rest = pixels[:3].reshape(-1, 3).mean(0)
        assert (bar > 4 * rest).all()
        tints = {"red": 0, "green": 1, "blue": 2}
        if (colour := COLOURS[grid.colours[cell]]) in tints:
            assert bar.argmax() == tints[colour]


def test_number_and_seed_decide(clothes: ClothesPictures) -> None:
    one, same, other = TileVqa(clothes, 9), TileVqa(clothes, 4), TileVqa(clothes, 9, seed=1)
    assert one[3].question == same[3].question and np.array_equal(one[3].grid.picture, same[3].grid.picture)
    assert any(not np.array_equal(one[number].grid.picture, other[number].grid.picture) for number in range(9))
    for number in (-1, 9):
        with pytest.raises(IndexError, match=f"expected a number from 0 to 8, got {number}"):
            one[number]
    assert len(list(one)) == 9


def test_statements_about_two_grids(clothes: ClothesPictures) -> None:
    statements = TileStatements(clothes, 600)
    seen = Counter()
    for one in statements:
        left, right = ({CLASSES[grid.classes[cell]] for cell in grid.filled} for grid in (one.left, one.right))
        if found := re.fullmatch(r"(both images contain|exactly one image contains) a (\w+)", one.statement):
            counted = (found[2] in left) + (found[2] in right)
            kind, truth = found[1], counted == (2 if found[1].startswith("both") else 1)
        else:
            assert one.statement == "the left image has more items than the right image"
            kind, truth = "more", len(one.left.filled) > len(one.right.filled)
        assert one.is_true == truth
        seen[kind, truth] += 1
    assert len(seen) == 6 and min(seen.values()) > 60


def test_descriptions_name_what_is_there(clothes: ClothesPictures) -> None:
    for grid, text in TileDescriptions(clothes, 20):
        items = [part.split() for part in text.split(", ")]
        assert [item[2] for item in items] == [CLASSES[number] for number in grid.classes[grid.filled]]
        assert [item[1] for item in items] == [COLOURS[number] for number in grid.colours[grid.filled]]


def test_every_class_must_be_there(clothes: ClothesPictures) -> None:
    some = clothes.classes != 8
    with pytest.raises(ValueError, match="argument 'pictures': expected all ten classes, got none of bag"):
        Clothes(ClothesPictures(clothes.pictures[some], clothes.classes[some]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_real_clothes() -> None:
    for split in ("train", "test"):
        for one in TileVqa(read_fashion_mnist(REAL, split), 50):
            assert answer_of(one.question, one.grid)[0] == one.answer
