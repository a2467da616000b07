import torch
from transformers import MPNetConfig, MPNetForMaskedLM, MPNetForQuestionAnswering, MPNetModel

from model_cases import text_inputs

SIZES = {
    MPNetConfig: {
        "vocab_size": 99,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 144,
        "max_position_embeddings": 40,
    }
}
ENCODERS = [MPNetModel]
HEADS = [MPNetForMaskedLM, MPNetForQuestionAnswering]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    return inputs, inputs["attention_mask"].bool()
