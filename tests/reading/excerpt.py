"""A real excerpt, a tokenizer made from it and a small reader."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from vleff.data.span_features import SpanExample, span_examples
from vleff.data.squad import read_squad

EXCERPT = Path(__file__).parents[1] / "data" / "squad_excerpt.json"


def excerpt(count: int | None = None) -> list[SpanExample]:
    return span_examples(read_squad(EXCERPT))[:count]


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """WordPiece over the excerpt's words, with BERT's template."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for e in excerpt() for text in (e.question, e.context)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def small_reader(seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return transformers.BertForQuestionAnswering(transformers.BertConfig(vocab_size=1500, **sizes))
