"""Modules over the ops, each usable alone in anyone's model, and RaggedBatch, which they take."""

from vleff.nn.attention_distillation import CrossModalAttentionDistillationLoss
from vleff.nn.copy_attention import CopyAttention
from vleff.nn.frozen_remainder_linear import FrozenRemainderLinear
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.head_masked_linear import HeadMaskedLinear, project_heads
from vleff.nn.masked_feed_forward import masked_feed_forward
from vleff.nn.masked_linear import MaskedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.nn.ragged_lstm import RaggedLSTM
from vleff.nn.token_gather_attention import TokenGatherAttention

__all__ = [
    "CopyAttention",
    "CrossModalAttentionDistillationLoss",
    "FrozenRemainderLinear",
    "FusedLinear",
    "HeadMaskedLinear",
    "MaskedLinear",
    "RaggedBatch",
    "RaggedLSTM",
    "TokenGatherAttention",
    "masked_feed_forward",
    "project_heads",
]
