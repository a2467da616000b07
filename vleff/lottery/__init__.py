"""Lottery subnetworks for few-shot domain adaptation of reading comprehension."""

from vleff.lottery.frozen_remainder import FrozenRemainderLinear
from vleff.lottery.subnetwork import extract, from_pretrained, masked_layers, save_pretrained, to_dense

__all__ = ["FrozenRemainderLinear", "extract", "from_pretrained", "masked_layers", "save_pretrained", "to_dense"]
