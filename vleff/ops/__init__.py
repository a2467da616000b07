"""The ops as functions. Each file holds one: its documented face, its reference in plain torch, its rules.

Importing this package loads the compiled library.
"""

from vleff.ops.attention_distillation import attention_distillation, attention_distillation_reference
from vleff.ops.fused_linear import (
    fused_linear,
    fused_linear_reference,
    pack_linear_weight,
    packs_linear_weight,
    unpack_linear_weight,
)
from vleff.ops.masked_feed_forward import masked_feed_forward, masked_feed_forward_reference
from vleff.ops.masked_linear import masked_linear, masked_linear_reference, pack_masked_weight
from vleff.ops.masked_structure import MaskedStructure
from vleff.ops.residual_layer_norm import residual_layer_norm, residual_layer_norm_reference
from vleff.ops.token_gather_attention import (
    token_gather_attention,
    token_gather_attention_flops,
    token_gather_attention_reference,
)

__all__ = [
    "MaskedStructure",
    "attention_distillation",
    "attention_distillation_reference",
    "fused_linear",
    "fused_linear_reference",
    "masked_feed_forward",
    "masked_feed_forward_reference",
    "masked_linear",
    "masked_linear_reference",
    "pack_linear_weight",
    "pack_masked_weight",
    "packs_linear_weight",
    "residual_layer_norm",
    "residual_layer_norm_reference",
    "token_gather_attention",
    "token_gather_attention_flops",
    "token_gather_attention_reference",
    "unpack_linear_weight",
]
