"""Models that learn Tile VQA: ViLTs made of real parts or small, and what else they learn before there are trimmers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import BertModel, ViltConfig, ViltForQuestionAnswering

import vleff
from vleff.data.tile_features import cell_means, cells_of
from vleff.data.tile_grid import CLASSES, COLOURS
from vleff.data.tile_vqa import ANSWERS
from vleff.models.vilt_patches import recorded_places

LAYERS = 6
PATCHES = 8  # a side of a picture
TEXT_SCALE = 0.25  # MiniLM's embeddings are four times as long as the ViT's
MATTERS_WEIGHT = 5.0  # one cell in ten matters: its loss is small beside the others


class WithCells(nn.Module):
    """A ViLT whose middle also learns what is in each cell of the grid and whether it matters."""

    def __init__(self, model: ViltForQuestionAnswering) -> None:
        super().__init__()
        self.model = vleff.accelerate(model)
        self.middle = model.config.num_hidden_layers // 2
        width = model.config.hidden_size
        self.classes, self.colours = nn.Linear(width, len(CLASSES) + 1), nn.Linear(width, len(COLOURS))
        self.matters = nn.Linear(width, 1)
        self.sees_empty_cells = True

    def forward(
        self, cell_classes: Tensor, cell_colours: Tensor, cell_matters: Tensor, labels: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        empty = cell_classes == len(CLASSES)
        hide = None if self.sees_empty_cells else lambda places: empty.gather(1, cells_of(places, PATCHES))
        with recorded_places(self.model, hide) as places:
            outputs = self.model(**inputs, output_hidden_states=True)
        patches = outputs.hidden_states[self.middle][:, -(PATCHES**2) :]
        cells = cell_means(patches, cells_of(places[0], PATCHES))
        loss = (
            cross_entropy(outputs.logits, labels)
            + cross_entropy(self.classes(cells).flatten(0, 1), cell_classes.flatten())
            + cross_entropy(self.colours(cells).flatten(0, 1), cell_colours.flatten())
            + MATTERS_WEIGHT * binary_cross_entropy_with_logits(self.matters(cells).squeeze(2), cell_matters)
        )
        return {"loss": loss, "logits": outputs.logits}


def study_model(vision: Path, text: Path) -> ViltForQuestionAnswering:
    """The first layers of a ViT around MiniLM's word embeddings, with a new head."""
    weights, bert = load_file(vision / "model.safetensors"), BertModel.from_pretrained(text)
    sizes = json.loads((vision / "config.json").read_text())
    config = vilt_config(sizes["hidden_size"], sizes["num_attention_heads"], bert.config.vocab_size)
    model = ViltForQuestionAnswering(config)
    wanted = model.vilt.state_dict().keys()
    model.vilt.load_state_dict({name: value for name, value in weights.items() if name in wanted}, strict=False)
    embeddings = model.vilt.embeddings
    words = {name: value for name, value in bert.embeddings.state_dict().items() if "position_ids" not in name}
    words["position_embeddings.weight"] = words["position_embeddings.weight"][: config.max_position_embeddings]
    embeddings.text_embeddings.load_state_dict(words, strict=False)
    embeddings.text_embeddings.word_embeddings.requires_grad_(False)
    with torch.no_grad():
        embeddings.token_type_embeddings.weight.zero_()
        for parameter in embeddings.text_embeddings.LayerNorm.parameters():
            parameter.mul_(TEXT_SCALE)
    return model


def demo_model(vocabulary: int) -> ViltForQuestionAnswering:
    """1.3 million parameters with a vocabulary of their own."""
    model = ViltForQuestionAnswering(vilt_config(128, 4, vocabulary))
    embeddings = model.vilt.embeddings
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):  # BERT's 0.02 is small for this width
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for parameter in (embeddings.cls_token, embeddings.position_embeddings):
            nn.init.trunc_normal_(parameter, std=0.3)
        embeddings.text_embeddings.LayerNorm.weight.mul_(0.3)
    return model


def vilt_config(width: int, heads: int, vocabulary: int, layers: int = LAYERS) -> ViltConfig:
    return ViltConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=112,
        patch_size=14,
        vocab_size=vocabulary,
        max_position_embeddings=40,
        layer_norm_eps=1e-6,
        max_image_length=-1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(ANSWERS)),
        label2id={name: number for number, name in enumerate(ANSWERS)},
    )
