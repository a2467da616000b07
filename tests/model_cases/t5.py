import torch
from transformers import (
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForTokenClassification,
    T5Model,
)

from model_cases import text_inputs

SIZES = {
    T5Config: {
        "vocab_size": 99,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 144,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
}
ENCODERS = [T5EncoderModel]
HEADS = [T5Model, T5ForConditionalGeneration, T5ForTokenClassification]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    if not isinstance(model, T5EncoderModel | T5ForTokenClassification):
        inputs["decoder_input_ids"] = torch.randint(5, 99, (4, 17))
    return inputs, inputs["attention_mask"].bool()
