"""Lottery subnetworks for few-shot domain adaptation of reading comprehension.

`attention_attribution` scores heads, `GradualPruner` or `PruningCallback` finds the masks while the source domain
is learnt, `extract` makes the subnetwork that is tuned on the target domain, `save_pretrained` and `to_dense`
pass it on.
"""

from vleff.lottery.attribution import (
    HeadScores,
    attention_attribution,
    class_probability,
    sequence_probability,
    span_probability,
)
from vleff.lottery.config import LotteryConfig
from vleff.lottery.matrices import attention_matrices, prunable_linears
from vleff.lottery.pruning import GradualPruner, PruningCallback
from vleff.lottery.ranking import combined_scores, select_masks
from vleff.lottery.subnetwork import extract, from_pretrained, save_pretrained, to_dense
from vleff.nn.frozen_remainder_linear import FrozenRemainderLinear
from vleff.training.sparse_checkpoints import masked_layers

__all__ = [
    "FrozenRemainderLinear",
    "GradualPruner",
    "HeadScores",
    "LotteryConfig",
    "PruningCallback",
    "attention_attribution",
    "attention_matrices",
    "class_probability",
    "combined_scores",
    "extract",
    "from_pretrained",
    "masked_layers",
    "prunable_linears",
    "save_pretrained",
    "select_masks",
    "sequence_probability",
    "span_probability",
    "to_dense",
]
