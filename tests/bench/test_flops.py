import pytest
import torch
import transformers

from vleff.bench.flops import FlopCount

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


@pytest.fixture
def text_count() -> FlopCount:
    model = transformers.BertModel(transformers.BertConfig(vocab_size=30, **SIZES)).eval()
    ids = torch.ones(1, 3, dtype=torch.int64)
    return FlopCount(model, {"input_ids": ids, "attention_mask": ids})


def test_text_model(text_count: FlopCount) -> None:
    assert text_count.padded(1, 17) == encoder_flops(17) + pooler_flops()
    assert text_count.padded(5, 20) == 5 * (encoder_flops(20) + pooler_flops())


def test_ragged_batch_counts_no_padding(text_count: FlopCount) -> None:
    lengths = [3, 20, 20, 1]
    assert text_count.ragged(lengths) == sum(encoder_flops(n) + pooler_flops() for n in lengths)


def test_image_model() -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SIZES)
    count = FlopCount(transformers.ViTModel(config).eval(), {"pixel_values": torch.ones(1, 3, 32, 32)})
    patches = 2 * 16 * 3 * 8 * 8 * WIDTH
    assert count.padded(2, 17) == 2 * (patches + encoder_flops(17) + pooler_flops())
