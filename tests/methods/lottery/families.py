"""Small models of the families that lottery subnetworks are proven on."""

import torch
import transformers

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TEXT = {**SIZES, "vocab_size": 99, "max_position_embeddings": 64}


def bert() -> transformers.PreTrainedModel:
    return transformers.BertForQuestionAnswering(transformers.BertConfig(**TEXT))


def roberta() -> transformers.PreTrainedModel:
    return transformers.RobertaForQuestionAnswering(transformers.RobertaConfig(**TEXT, pad_token_id=0))


def mpnet() -> transformers.PreTrainedModel:
    return transformers.MPNetForQuestionAnswering(transformers.MPNetConfig(**TEXT, pad_token_id=0))


def vilt() -> transformers.PreTrainedModel:
    config = transformers.ViltConfig(**TEXT, image_size=32, patch_size=16, num_labels=5)
    return transformers.ViltForQuestionAnswering(config)


def t5() -> transformers.PreTrainedModel:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


FAMILIES = {"bert": bert, "roberta": roberta, "mpnet": mpnet, "vilt": vilt, "t5": t5}


def inputs_of(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """A padded batch of 3 for the model."""
    ids = torch.randint(3, 99, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.model_type == "vilt":
        inputs["pixel_values"] = torch.randn(3, 3, 32, 32)
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = torch.randint(3, 99, (3, 7))
    return inputs
