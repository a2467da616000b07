"""Grids of tinted clothes: the pictures that Tile VQA asks about and describes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vleff.data.fashion_mnist import EDGE, ClothesPictures

SIDE = 4
CELLS = SIDE * SIDE
EMPTY = -1
CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
NUMBERS = ("one", "two", "three", "four")
MIN_FILLED, MAX_FILLED = 5, 9
_TINTS = np.array(
    [[230, 40, 40], [40, 200, 60], [60, 90, 250], [235, 220, 40], [190, 60, 210], [240, 240, 240]], dtype=np.uint16
)


@dataclass(frozen=True)
class Grid:
    """4 x 4 cells, some of them filled, numbered row by row.

    Attributes:
        classes: int64 [16], numbers in `CLASSES`; -1 where a cell is empty.
        colours: int64 [16], numbers in `COLOURS`; -1 where a cell is empty.
        picture: uint8 [112, 112, 3], red, green, blue.
    """

    classes: np.ndarray
    colours: np.ndarray
    picture: np.ndarray

    @property
    def filled(self) -> np.ndarray:
        """The numbers of the cells that are filled, in order."""
        return np.flatnonzero(self.classes != EMPTY)

    def describe(self) -> str:
        """What the cells hold, in order, as in "a red bag, a white coat"."""
        return ", ".join(f"a {COLOURS[self.colours[cell]]} {CLASSES[self.classes[cell]]}" for cell in self.filled)


class Clothes:
    """Pictures by class, to fill grids with."""

    def __init__(self, pictures: ClothesPictures) -> None:
        missing = [name for number, name in enumerate(CLASSES) if number not in pictures.classes]
        if missing:
            raise ValueError(f"argument 'pictures': expected all ten classes, got none of {', '.join(missing)}")
        self._pictures = pictures.pictures
        self._by_class = [np.flatnonzero(pictures.classes == number) for number in range(len(CLASSES))]

    def draw(self, classes: np.ndarray, colours: np.ndarray, generator: np.random.Generator) -> Grid:
        """A grid with a picture of the given class in the given colour in each cell, -1 for none."""
        picture = np.zeros((SIDE, EDGE, SIDE, EDGE, 3), np.uint8)
        for cell in np.flatnonzero(classes != EMPTY):
            of_class = self._by_class[classes[cell]]
            grey = self._pictures[of_class[generator.integers(len(of_class))]]
            picture[cell // SIDE, :, cell % SIDE] = grey[..., None] * _TINTS[colours[cell]] // 255
        edge = SIDE * EDGE
        return Grid(classes, colours, picture.reshape(edge, edge, 3))


def random_contents(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Classes and colours, int64 [16] each, of 5 to 9 filled cells."""
    classes, colours = np.full(CELLS, EMPTY), np.full(CELLS, EMPTY)
    count = generator.integers(MIN_FILLED, MAX_FILLED + 1)
    cells = generator.permutation(CELLS)[:count]
    classes[cells] = generator.integers(len(CLASSES), size=count)
    colours[cells] = generator.integers(len(COLOURS), size=count)
    return classes, colours


def place(cell: int) -> str:
    """The name of a cell, as in "row one column four"."""
    return f"row {NUMBERS[cell // SIDE]} column {NUMBERS[cell % SIDE]}"


def other(taken: int, values: Sequence[str], generator: np.random.Generator, count: int) -> np.ndarray:
    """`count` numbers in `values`, none of them `taken`."""
    drawn = generator.integers(len(values) - 1, size=count)
    return drawn + (drawn >= taken)
