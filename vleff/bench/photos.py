"""Batches of photos."""

import random
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from vleff.bench.inputs import DATA, Batch, Samples

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# width to height of what cameras take
CAMERA_FORMATS = ((4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (1, 1))
# ViLT resizes a photo to a shorter edge of 384 pixels, a longer one of at most 639 and multiples of 32 for both
SHORTER_EDGE, LONGER_EDGE, EDGE_UNIT = 384, 639, 32

IMAGE_SIZES = ("mixed", "square")


class Photos:
    """Real photos and random crops of them as pixel values in [-1, 1]; a number and the seed choose the crop.

    Args:
        folder: where the photos are; the package's own if None.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: the folder holds no image.
    """

    def __init__(self, folder: Path | None, seed: int) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError("photos need Pillow: pip install pillow, or vleff[bench]") from error
        with resources.as_file(DATA / "photos") as shipped:
            files = sorted((folder or shipped).iterdir())
            files = [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES]
            if not files:
                raise ValueError(f"{folder}: expected images ({', '.join(sorted(PHOTO_SUFFIXES))}), found none")
            self._photos = [Image.open(file).convert("RGB") for file in files]
        self._seed = seed
        self._shipped = folder is None
        self.description = f"{len(files)} photos ({folder or 'shipped with vleff'})"

    def __len__(self) -> int:
        return len(self._photos)

    def square(self, number: int, edge: int) -> Tensor:
        """A square crop, [3, edge, edge]."""
        return self._crop(number, (1, 1), (edge, edge))

    def of_size(self, number: int, width: int, height: int) -> Tensor:
        """A crop of any size, [3, height, width]."""
        return self._crop(number, (width, height), (width, height))

    def as_taken(self, number: int) -> Tensor:
        """A crop in the photo's own format and the size that ViLT gives it, [3, height, width].

        The package's photos are square; they take the formats of cameras instead.
        """
        own = self._photos[number % len(self)].size
        width, height = self._random(number).choice(CAMERA_FORMATS) if self._shipped else own
        scale = min(SHORTER_EDGE / min(width, height), LONGER_EDGE / max(width, height))
        new_width, new_height = (int(scale * extent + 0.5) // EDGE_UNIT * EDGE_UNIT for extent in (width, height))
        return self._crop(number, (width, height), (new_width, new_height))

    def _crop(self, number: int, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """The largest window of the format `shape` (width to height), a little shrunk, resized to `size`."""
        photo, generator = self._photos[number % len(self)], self._random(number)
        largest = min(extent / part for extent, part in zip(photo.size, shape, strict=True))
        scale = largest * generator.uniform(0.7, 1.0)
        width, height = (max(1, round(scale * part)) for part in shape)
        left, top = generator.randint(0, photo.width - width), generator.randint(0, photo.height - height)
        crop = photo.resize(size, box=(left, top, left + width, top + height))
        values = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8)
        return values.view(size[1], size[0], 3).permute(2, 0, 1).float() / 127.5 - 1

    def _random(self, number: int) -> random.Random:
        return random.Random(f"{self._seed} {number}")


def photo_samples(photos: Photos, image_size: int, tokens: int) -> Samples:
    """Square crops, for a model that makes `tokens` tokens of an image of `image_size` pixels."""

    def collate(numbers: list[int]) -> Batch:
        values = torch.stack([photos.square(number, image_size) for number in numbers])
        return Batch({"pixel_values": values}, (torch.ones(len(numbers), tokens, dtype=torch.bool),), numbers)

    return Samples(f"crops of {photos.description}", max(64, len(photos)), collate)
