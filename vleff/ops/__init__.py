"""The ops as functions. Each file holds one: its documented face, its reference in plain torch, its rules.

Importing this package loads the compiled library.
"""

from vleff.ops.attention_distillation import (
    attention_distillation,
    attention_distillation_flops,
    attention_distillation_reference,
)
from vleff.ops.copy_attention import (
    CopyMemory,
    copy_attention,
    copy_attention_flops,
    copy_attention_reference,
    copy_attention_rows,
    copy_attention_rows_reference,
)
from vleff.ops.copy_attention_top import copy_attention_top, copy_attention_top_reference
from vleff.ops.fused_linear import (
    fused_linear,
    fused_linear_reference,
    pack_linear_weight,
    packs_linear_weight,
    unpack_linear_weight,
)
from vleff.ops.head_masked_linear import (
    head_masked_linear_flops,
    head_masked_project,
    head_masked_project_reference,
    head_masked_reduce,
    head_masked_reduce_reference,
    pack_head_masked_weight,
)
from vleff.ops.masked_feed_forward import masked_feed_forward, masked_feed_forward_reference
from vleff.ops.masked_linear import masked_linear, masked_linear_reference, pack_masked_weight
from vleff.ops.masked_structure import MaskedStructure
from vleff.ops.ragged_lstm import ragged_lstm, ragged_lstm_reference
from vleff.ops.residual_layer_norm import residual_layer_norm, residual_layer_norm_reference
from vleff.ops.sum_rows import sum_rows, sum_rows_reference
from vleff.ops.token_gather_attention import (
    token_gather_attention,
    token_gather_attention_flops,
    token_gather_attention_reference,
)
from vleff.ops.top_words import top_words, top_words_reference
from vleff.ops.trim_heads import trim_heads, trim_heads_reference
from vleff.ops.trim_tokens import trim_tokens, trim_tokens_reference
from vleff.ops.vocabulary_log_probs import vocabulary_log_probs, vocabulary_log_probs_reference

__all__ = [
    "CopyMemory",
    "MaskedStructure",
    "attention_distillation",
    "attention_distillation_flops",
    "attention_distillation_reference",
    "copy_attention",
    "copy_attention_flops",
    "copy_attention_reference",
    "copy_attention_rows",
    "copy_attention_rows_reference",
    "copy_attention_top",
    "copy_attention_top_reference",
    "fused_linear",
    "fused_linear_reference",
    "head_masked_linear_flops",
    "head_masked_project",
    "head_masked_project_reference",
    "head_masked_reduce",
    "head_masked_reduce_reference",
    "masked_feed_forward",
    "masked_feed_forward_reference",
    "masked_linear",
    "masked_linear_reference",
    "pack_head_masked_weight",
    "pack_linear_weight",
    "pack_masked_weight",
    "packs_linear_weight",
    "ragged_lstm",
    "ragged_lstm_reference",
    "residual_layer_norm",
    "residual_layer_norm_reference",
    "sum_rows",
    "sum_rows_reference",
    "token_gather_attention",
    "token_gather_attention_flops",
    "token_gather_attention_reference",
    "top_words",
    "top_words_reference",
    "trim_heads",
    "trim_heads_reference",
    "trim_tokens",
    "trim_tokens_reference",
    "unpack_linear_weight",
    "vocabulary_log_probs",
    "vocabulary_log_probs_reference",
]
