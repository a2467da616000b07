import re
from pathlib import Path

import pytest
import torch
import transformers

from vleff.bench.inputs import paragraphs

WIDTH = 64


def tiny_bert_config(**options) -> transformers.BertConfig:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    return transformers.BertConfig(**sizes, **options)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model directory: two small BERT layers, and a tokenizer of the words of the shipped paragraphs."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    words = {word for text in paragraphs(None) for word in re.findall(r"[a-z]+|\d|[^\w\s]", text.lower())}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.BertModel(tiny_bert_config(vocab_size=len(vocabulary))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model directory: two small ViT layers for images of 64 pixels."""
    folder = tmp_path_factory.mktemp("tiny-vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=64,
        patch_size=16,
    )
    transformers.ViTModel(config).save_pretrained(folder)
    return folder
