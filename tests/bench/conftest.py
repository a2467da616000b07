import re
from pathlib import Path

import pytest
import torch
import transformers

from vleff.bench.inputs import paragraphs

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model directory: two small BERT layers, and a tokenizer of the shipped paragraphs' words."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    words = {word for text in paragraphs(None) for word in re.findall(r"[a-z]+|\d|[^\w\s]", text.lower())}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), **SIZES)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model directory: two small ViT layers for images of 64 pixels."""
    folder = tmp_path_factory.mktemp("tiny-vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=64, patch_size=16, **SIZES)
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vilt(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model directory: two small ViLT layers, and the tokenizer of `tiny_bert`."""
    folder = tmp_path_factory.mktemp("tiny-vilt")
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    torch.manual_seed(0)
    size = transformers.AutoConfig.from_pretrained(tiny_bert).vocab_size
    transformers.ViltModel(transformers.ViltConfig(vocab_size=size, **SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture
def answering(tiny_vilt: Path, tmp_path: Path) -> Path:
    """A local directory: `tiny_vilt` with a head of five answers."""
    model = transformers.ViltForQuestionAnswering.from_pretrained(tiny_vilt, num_labels=5, dtype=torch.float32)
    model.save_pretrained(tmp_path / "answering")
    transformers.AutoTokenizer.from_pretrained(tiny_vilt).save_pretrained(tmp_path / "answering")
    return tmp_path / "answering"
