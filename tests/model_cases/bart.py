import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
)
from transformers.models.bart.modeling_bart import BartEncoder

from model_cases import text_inputs

SIZES = {
    BartConfig: {
        "vocab_size": 99,
        "d_model": 64,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 144,
        "decoder_ffn_dim": 144,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }
}
ENCODERS = [BartEncoder]
HEADS = [BartModel, BartForConditionalGeneration, BartForQuestionAnswering, BartForSequenceClassification]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    inputs = text_inputs()
    valid = inputs["attention_mask"].bool()
    if isinstance(model, BartEncoder):
        return inputs, valid
    if isinstance(model, BartForSequenceClassification):  # it reads the states of the only end-of-text token
        inputs["input_ids"][torch.arange(4), valid.sum(1) - 1] = 2
        return inputs, valid
    inputs["decoder_input_ids"] = torch.randint(5, 99, (4, 17))
    return inputs, valid
