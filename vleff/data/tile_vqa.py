"""Tile VQA: questions about grids of tinted clothes, made from Fashion-MNIST.

The pixels are real, the questions are made, by the number of the example and a seed alone: data of any size need no
file. Variants: statements about two grids, and descriptions of one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vleff.data.fashion_mnist import ClothesPictures
from vleff.data.tile_grid import CELLS, CLASSES, COLOURS, EMPTY, NUMBERS, Clothes, Grid, other, place, random_contents

ANSWERS = (*CLASSES, *COLOURS, "yes", "no", *NUMBERS)
KINDS = ("colour", "item", "count", "exists", "position")


@dataclass(frozen=True)
class TileQuestion:
    """A question about a grid.

    Attributes:
        kind: one of `KINDS`.
        answer: one of `ANSWERS`.
        matters: bool [16], the cells that one must see to answer. For reports only: nothing that is to find them by
            itself may learn from it.
    """

    grid: Grid
    kind: str
    question: str
    answer: str
    matters: np.ndarray


@dataclass(frozen=True)
class TileStatement:
    """A statement about two grids."""

    left: Grid
    right: Grid
    statement: str
    is_true: bool


class TileVqa:
    """A sequence of questions.

    Args:
        pictures: of one split; grids of the training split and of the test split share none.
        size: the number of questions.
        seed: number and seed decide a question and its grid.
    """

    def __init__(self, pictures: ClothesPictures, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._clothes = Clothes(pictures)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> TileQuestion:
        generator = _generator(self, number)
        kind = KINDS[generator.integers(len(KINDS))]
        classes, colours = random_contents(generator)
        question, answer, matters = _ASK[kind](classes, colours, generator)
        return TileQuestion(self._clothes.draw(classes, colours, generator), kind, question, answer, matters)


class TileStatements:
    """A sequence of statements about two grids, half of them true; arguments as of `TileVqa`."""

    def __init__(self, pictures: ClothesPictures, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._clothes = Clothes(pictures)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> TileStatement:
        generator = _generator(self, number)
        is_true = bool(generator.integers(2))
        left, right = random_contents(generator), random_contents(generator)
        statement = _STATE[generator.integers(len(_STATE))](left, right, is_true, generator)
        grids = [self._clothes.draw(*contents, generator) for contents in (left, right)]
        return TileStatement(grids[0], grids[1], statement, is_true)


class TileDescriptions:
    """A sequence of grids, each with its description, for captions and for retrieval; arguments as of `TileVqa`."""

    def __init__(self, pictures: ClothesPictures, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._clothes = Clothes(pictures)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> tuple[Grid, str]:
        generator = _generator(self, number)
        grid = self._clothes.draw(*random_contents(generator), generator)
        return grid, grid.describe()


def _generator(data: "TileVqa | TileStatements | TileDescriptions", number: int) -> np.random.Generator:
    if not 0 <= number < data.size:
        raise IndexError(f"expected a number from 0 to {data.size - 1}, got {number}")
    return np.random.default_rng((data.seed, number))


def _ask_colour(
    classes: np.ndarray, colours: np.ndarray, generator: np.random.Generator
) -> tuple[str, str, np.ndarray]:
    """About the only item of a class; contents are changed where they must be, here and in the other kinds."""
    cell = _make_unique(classes, CLASSES, generator)
    return f"what colour is the {CLASSES[classes[cell]]}?", COLOURS[colours[cell]], _only(cell)


def _ask_item(classes: np.ndarray, colours: np.ndarray, generator: np.random.Generator) -> tuple[str, str, np.ndarray]:
    cell = _make_unique(colours, COLOURS, generator)
    return f"what is the {COLOURS[colours[cell]]} item?", CLASSES[classes[cell]], _only(cell)


def _ask_count(classes: np.ndarray, colours: np.ndarray, generator: np.random.Generator) -> tuple[str, str, np.ndarray]:
    colour = int(generator.integers(len(COLOURS)))
    count = generator.integers(1, len(NUMBERS) + 1)
    cells = generator.permutation(np.flatnonzero(classes != EMPTY))
    colours[cells[:count]] = colour
    colours[cells[count:]] = other(colour, COLOURS, generator, len(cells) - count)
    return f"how many items are {COLOURS[colour]}?", NUMBERS[count - 1], colours == colour


def _ask_exists(
    classes: np.ndarray, colours: np.ndarray, generator: np.random.Generator
) -> tuple[str, str, np.ndarray]:
    wanted = _make_contain(classes, bool(generator.integers(2)), generator)
    matters = classes == wanted
    return f"is there a {CLASSES[wanted]}?", "yes" if matters.any() else "no", matters


def _ask_position(
    classes: np.ndarray, colours: np.ndarray, generator: np.random.Generator
) -> tuple[str, str, np.ndarray]:
    cell = int(generator.choice(np.flatnonzero(classes != EMPTY)))
    return f"what is in {place(cell)}?", CLASSES[classes[cell]], _only(cell)


_ASK: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[str, str, np.ndarray]]] = {
    "colour": _ask_colour,
    "item": _ask_item,
    "count": _ask_count,
    "exists": _ask_exists,
    "position": _ask_position,
}

Contents = tuple[np.ndarray, np.ndarray]


def _state_both(left: Contents, right: Contents, is_true: bool, generator: np.random.Generator) -> str:
    wanted = _make_contain(left[0], True, generator)
    _make_contain(right[0], is_true, generator, wanted)
    if generator.integers(2):  # the one that lacks it may be either
        _swap(left, right)
    return f"both images contain a {CLASSES[wanted]}"


def _state_one(left: Contents, right: Contents, is_true: bool, generator: np.random.Generator) -> str:
    wanted = _make_contain(left[0], True, generator)
    if not is_true and generator.integers(2):
        _make_contain(left[0], False, generator, wanted)
        _make_contain(right[0], False, generator, wanted)
    else:
        _make_contain(right[0], not is_true, generator, wanted)
    if generator.integers(2):
        _swap(left, right)
    return f"exactly one image contains a {CLASSES[wanted]}"


def _state_more(left: Contents, right: Contents, is_true: bool, generator: np.random.Generator) -> str:
    if ((left[0] != EMPTY).sum() > (right[0] != EMPTY).sum()) != is_true:
        _swap(left, right)
    if is_true and (left[0] != EMPTY).sum() == (right[0] != EMPTY).sum():
        cell = generator.choice(np.flatnonzero(right[0] != EMPTY))
        right[0][cell] = right[1][cell] = EMPTY
    return "the left image has more items than the right image"


_STATE = (_state_both, _state_one, _state_more)


def _make_unique(values: np.ndarray, names: tuple[str, ...], generator: np.random.Generator) -> int:
    """A filled cell whose value no other one has, after changing the others."""
    cell = int(generator.choice(np.flatnonzero(values != EMPTY)))
    same = values == values[cell]
    same[cell] = False
    values[same] = other(int(values[cell]), names, generator, int(same.sum()))
    return cell


def _make_contain(classes: np.ndarray, present: bool, generator: np.random.Generator, wanted: int | None = None) -> int:
    """A class, `wanted` if given, that is present or not, after changing what must be changed."""
    if wanted is None:
        wanted = int(generator.integers(len(CLASSES)))
    there = classes == wanted
    if present and not there.any():
        classes[generator.choice(np.flatnonzero(classes != EMPTY))] = wanted
    elif not present:
        classes[there] = other(wanted, CLASSES, generator, int(there.sum()))
    return wanted


def _swap(left: Contents, right: Contents) -> None:
    for one, another in zip(left, right, strict=True):
        one[:], another[:] = another.copy(), one.copy()


def _only(cell: int) -> np.ndarray:
    matters = np.zeros(CELLS, bool)
    matters[cell] = True
    return matters
