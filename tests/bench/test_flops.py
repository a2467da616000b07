import pytest
import transformers

from vleff.bench.flops import FlopCount
from vleff.bench.inputs import Batch, text_samples
from vleff.bench.photos import Photos, photo_samples

WIDTH, HIDDEN, LAYERS = 48, 96, 3
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": HIDDEN,
}


def encoder_flops(length: int) -> int:
    linears = length * (4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
    attention = 2 * length * length * WIDTH
    return 2 * LAYERS * (linears + attention)


def pooler_flops() -> int:
    return 2 * WIDTH * WIDTH


def batch(*lengths: int) -> Batch:
    return text_samples([list(range(5, 5 + n)) for n in lengths], "numbers", padding=0).batches(len(lengths))[0]


@pytest.fixture
def text_count() -> FlopCount:
    return FlopCount(transformers.BertModel(transformers.BertConfig(vocab_size=30, **SIZES)).eval())


def test_text_model(text_count: FlopCount) -> None:
    assert text_count.padded(batch(17)) == encoder_flops(17) + pooler_flops()
    assert text_count.padded(batch(20, 3, 1)) == 3 * (encoder_flops(20) + pooler_flops())


def test_ragged_batch_counts_no_padding(text_count: FlopCount) -> None:
    lengths = [3, 20, 20, 1]
    assert text_count.ragged(batch(*lengths)) == sum(encoder_flops(n) + pooler_flops() for n in lengths)


class LooksAtData(transformers.BertModel):
    """As ViLT and BridgeTower do with their masks."""

    def forward(self, input_ids, attention_mask=None):
        assert input_ids.sum().item() > 0
        return super().forward(input_ids, attention_mask=attention_mask)


def test_model_that_looks_at_data_is_counted_in_a_real_run(text_count: FlopCount) -> None:
    count = FlopCount(LooksAtData(text_count.model.config).eval())
    for pair in (batch(17, 5), batch(9, 9)):  # SDPA with a mask and without
        assert count.padded(pair) == text_count.padded(pair)
        assert count.ragged(pair) == text_count.ragged(pair)


def test_image_model() -> None:
    pytest.importorskip("PIL", reason="photos need Pillow")
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SIZES)
    count = FlopCount(transformers.ViTModel(config).eval())
    patches = 2 * 16 * 3 * 8 * 8 * WIDTH
    pair = photo_samples(Photos(None, seed=0), image_size=32, tokens=17).batches(2)[0]
    assert count.padded(pair) == count.ragged(pair) == 2 * (patches + encoder_flops(17) + pooler_flops())
