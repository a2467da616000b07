"""ViLT with both heads of its pre-training, masked words and image-text matching; transformers has the first alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel, ViltPreTrainedModel
from transformers.models.vilt.modeling_vilt import ViltMLMHead
from transformers.utils import ModelOutput


@dataclass
class ViltForPreTrainingOutput(ModelOutput):
    """What ViltForPreTraining returns.

    Attributes:
        logits: [batch, 2], whether text and image belong together: class 1 says that they do.
        word_logits: [batch, length, vocabulary].
    """

    logits: Tensor | None = None
    word_logits: Tensor | None = None


class ViltForPreTraining(ViltPreTrainedModel):
    """ViltModel with a head for masked words and one for matching; a checkpoint of ViltForMaskedLM loads into it."""

    _tied_weights_keys: ClassVar[Any] = {  # type: ignore[misc]
        "mlm_score.decoder.weight": "vilt.embeddings.text_embeddings.word_embeddings.weight"
    }

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.vilt = ViltModel(config)
        self.mlm_score = ViltMLMHead(config)
        self.itm_score = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_score.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.mlm_score.decoder = new_embeddings

    def forward(self, words: Tensor | None = None, **inputs: Any) -> ViltForPreTrainingOutput:
        """
        Args:
            words: bool [batch, length], where word logits are wanted: they are then [wanted, vocabulary], in order;
                none at all if None.
            inputs: as of ViltModel.
        """
        output = self.vilt(**inputs, return_dict=True)
        logits = self.itm_score(output.pooler_output)
        if words is None:
            return ViltForPreTrainingOutput(logits=logits)
        states = output.last_hidden_state[:, : words.shape[1]]
        return ViltForPreTrainingOutput(logits=logits, word_logits=self.mlm_score(states[words]))

    def loss(self, output: ViltForPreTrainingOutput, matches: Tensor, word_labels: Tensor | None = None) -> Tensor:
        """Cross entropy of matching, int64 [batch], plus that of words, int64 [wanted]."""
        assert output.logits is not None
        loss = torch.nn.functional.cross_entropy(output.logits, matches)
        if word_labels is not None and output.word_logits is not None and len(word_labels):
            loss = loss + torch.nn.functional.cross_entropy(output.word_logits, word_labels)
        return loss
