"""SmartTrim: each input gets only the tokens and attention heads that it needs, in every layer.

`attach` puts trimmers on a model, `training_loss` or `SmartTrimTrainer` trains both, `save_pretrained` and
`from_pretrained` pass them on; `recorded` and `kept_by` tell what was kept.
"""

from vleff.smarttrim.attachment import attach, detach
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.execution import recorded, repeated, running, trimmers_of
from vleff.smarttrim.objective import TrainingLoss, training_loss
from vleff.smarttrim.predictions import Prediction
from vleff.smarttrim.pretrained import from_pretrained, save_pretrained, trimmer_parameters
from vleff.smarttrim.record import LayerRecord, RunRecord
from vleff.smarttrim.report import Kept, LayerKept, kept_by, measure_gain
from vleff.smarttrim.trainer import SmartTrimTrainer
from vleff.smarttrim.trimming import Trimmers

__all__ = [
    "Kept",
    "LayerKept",
    "LayerRecord",
    "Prediction",
    "RunRecord",
    "SmartTrimConfig",
    "SmartTrimTrainer",
    "TrainingLoss",
    "Trimmers",
    "attach",
    "detach",
    "from_pretrained",
    "kept_by",
    "measure_gain",
    "recorded",
    "repeated",
    "running",
    "save_pretrained",
    "training_loss",
    "trimmer_parameters",
    "trimmers_of",
]
