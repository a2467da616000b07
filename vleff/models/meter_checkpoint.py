"""The layout of the checkpoints that METER's authors released. Not tried on a released file."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vleff.models.meter import MeterPreTrainedModel

_HEADS = ("vqa_classifier", "snli_classifier", "nlvr2_classifier", "rank_output")
# theirs -> ours; the first pattern that matches counts
_NAMES = (
    (r"^vit_model\.visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^vit_model\.visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^vit_model\.visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^vit_model\.visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^vit_model\.visual\.ln_post\.", "vision_model.post_layernorm."),
    (
        r"^vit_model\.visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.",
        r"vision_model.encoder.layers.\1.self_attn.out_proj.",
    ),
    (
        r"^vit_model\.visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.",
        r"vision_model.encoder.layers.\1.layer_norm\2.",
    ),
    (r"^vit_model\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"vision_model.encoder.layers.\1.mlp.fc1."),
    (r"^vit_model\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"vision_model.encoder.layers.\1.mlp.fc2."),
    (r"^text_transformer\.", "text_model."),
)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_IN_PROJECTION = re.compile(r"^vit_model\.visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
# parts that the models here do not have: pooler of RoBERTa, pre-training heads, buffers
_LEFT_OUT = re.compile(
    r"^text_transformer\.pooler\.|^(mlm_score|itm_score)\.|position_ids$|^vit_model\.(?!visual\.)|\.visual\.proj$"
)


def load_original_state_dict(model: MeterPreTrainedModel, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Loads a state_dict in the layout of the authors' released checkpoints. Not tried on a released file.

    Args:
        model: MeterModel or one with a head, of the sizes of the checkpoint.
        state_dict: with names such as "vit_model.visual.conv1.weight" and "text_transformer.embeddings...".

    Returns:
        the names in `state_dict` that the model has no place for.

    Raises:
        RuntimeError: a parameter of the model is missing there, or has another shape.
    """
    left_out = [name for name in state_dict if _LEFT_OUT.search(name)]
    ours = from_original({name: value for name, value in state_dict.items() if name not in left_out})
    body = "" if model.base_model is model else "meter."
    named = {name if name.startswith("classifier") else body + name: value for name, value in ours.items()}
    if not body:
        left_out += [name for name in named if name.startswith("classifier")]
        named = {name: value for name, value in named.items() if not name.startswith("classifier")}
    wanted = model.state_dict()
    unknown = [name for name in named if name not in wanted]
    named = {name: _resized(value, wanted[name]) for name, value in named.items() if name in wanted}
    model.load_state_dict(named)
    return left_out + unknown


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries under the names of MeterModel, those of a head under "classifier"."""
    ours: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        joint = _IN_PROJECTION.match(name)
        if joint:
            layer, kind = joint.groups()
            for projection, part in zip(_PROJECTIONS, value.chunk(3), strict=True):
                ours[f"vision_model.encoder.layers.{layer}.self_attn.{projection}.{kind}"] = part
            continue
        for head in _HEADS:
            name = re.sub(rf"^{head}\.", "classifier.", name)
        for pattern, replacement in _NAMES:
            renamed, count = re.subn(pattern, replacement, name)
            if count:
                name = renamed
                break
        ours[name] = value
    return ours


def _resized(value: Tensor, wanted: Tensor) -> Tensor:
    """A modality table with fewer rows gets the image's row for the rows that are missing, as the authors do."""
    if value.dim() == 2 and value.shape[1:] == wanted.shape[1:] and value.shape[0] == 2 and wanted.shape[0] == 3:
        return torch.cat([value, value[1:]])
    return value
