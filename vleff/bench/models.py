"""The models to measure: published sizes with random weights, local directories and hub names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from vleff.bench.inputs import (
    Samples,
    bert_question_ids,
    bert_token_ids,
    paragraphs,
    questions,
    text_samples,
    tokenize,
)
from vleff.bench.pairs import PAIR_MODELS, pair_format, pair_model_class, pair_samples, with_special_tokens
from vleff.bench.photos import Photos, photo_samples


@dataclass(frozen=True)
class Preset:
    """A published architecture. `hub_name` names the model whose size and tokenizer it has."""

    hub_name: str
    config: Callable[[], transformers.PretrainedConfig]


def _meter() -> transformers.PretrainedConfig:
    from vleff.models.meter import MeterConfig

    return MeterConfig()


PRESETS = {
    "bert-base": Preset("google-bert/bert-base-uncased", transformers.BertConfig),
    "roberta-base": Preset(
        "FacebookAI/roberta-base",
        lambda: transformers.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
        ),
    ),
    "distilbert-base": Preset("distilbert/distilbert-base-uncased", transformers.DistilBertConfig),
    "vit-base": Preset("google/vit-base-patch16-224", transformers.ViTConfig),
    "vilt": Preset("dandelin/vilt-b32-mlm", transformers.ViltConfig),
    "bridgetower": Preset("BridgeTower/bridgetower-base", transformers.BridgeTowerConfig),
    # transformers' defaults differ: 8 heads, and an initialisation that leaves the image without influence
    "blip": Preset(
        "Salesforce/blip-vqa-base",
        lambda: transformers.BlipConfig(
            text_config={"num_attention_heads": 12}, vision_config={"initializer_range": 0.02}
        ),
    ),
    "clip": Preset("openai/clip-vit-base-patch16", lambda: transformers.CLIPConfig(vision_config={"patch_size": 16})),
    "meter": Preset("METER (CLIP ViT-B/16 and RoBERTa-base)", _meter),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32, in evaluation mode.

    Attributes:
        name: as the user gave it.
        model: the transformers model.
        weights: where its weights come from, for the report.
    """

    name: str
    model: transformers.PreTrainedModel
    weights: str

    @property
    def reads_pairs(self) -> bool:
        """Whether it takes questions with photos."""
        return self.model.config.model_type in PAIR_MODELS

    @property
    def reads_images(self) -> bool:
        """Whether it takes photos only; if it does neither, it takes text."""
        return not self.reads_pairs and self.model.main_input_name == "pixel_values"


def load_model(name: str, seed: int = 0) -> LoadedModel:
    """Loads a model in fp32.

    Args:
        name: a preset, a local directory as `save_pretrained` writes it, or a name on the Hugging Face hub.
        seed: of the random weights of a preset.

    Raises:
        ValueError: `name` is none of these.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if name in PRESETS:
        torch.manual_seed(seed)
        config = PRESETS[name].config()
        if config.model_type in PAIR_MODELS:
            model = pair_model_class(config)(config)
        else:
            model = transformers.AutoModel.from_config(config, dtype=torch.float32)
        weights = f"random weights (seed {seed}) in the size of {PRESETS[name].hub_name}"
        return LoadedModel(name, model.eval(), weights)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        model_class = pair_model_class(config) if config.model_type in PAIR_MODELS else transformers.AutoModel
        model = model_class.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model: expected one of {', '.join(PRESETS)}, a directory with a transformers model, or a name "
            f"on the Hugging Face hub, got {name!r}: {reason}"
        ) from error
    return LoadedModel(name, model.eval(), f"weights of {name}")


def samples_for(
    loaded: LoadedModel, data: Path | None, photos: Path | None, seed: int, images: str | None = None
) -> Samples:
    """Real input for a model: paragraphs, photos or both, of the package unless the user gives a file or folder.

    Args:
        images: "square" or "mixed" sizes of the photos, for a model that takes both; None for its default.

    Raises:
        ValueError: the input does not suit the model, or there is no tokenizer for it.
        ImportError: a package that reads the input is missing.
    """
    config = loaded.model.config
    if images is not None and config.model_type != "vilt":
        raise ValueError(f"images: {loaded.name} does not take images of several sizes; leave it out")
    if loaded.reads_pairs:
        return _pairs_for(loaded, data, photos, seed, images or "mixed")
    if loaded.reads_images:
        if data is not None:
            raise ValueError(f"data: {loaded.name} reads images; give a folder of photos instead")
        if not isinstance(config.image_size, int):
            raise ValueError(f"model: expected square images, got image size {config.image_size}")
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        return photo_samples(Photos(photos, seed), config.image_size, tokens)
    if photos is not None:
        raise ValueError(f"photos: {loaded.name} reads text; give a SQuAD file instead")
    source = f"paragraphs of {data}" if data else "SQuAD paragraphs shipped with vleff"
    padding = config.pad_token_id or 0
    if data is None and loaded.name in PRESETS:
        return text_samples(bert_token_ids(), f"{source}, tokens of bert-base-uncased", padding)
    ids = tokenize(_tokenizer(loaded), paragraphs(data), _maximum_length(config))
    return text_samples(ids, source, padding)


def _pairs_for(loaded: LoadedModel, data: Path | None, photos: Path | None, seed: int, images: str) -> Samples:
    config = loaded.model.config
    form = pair_format(config)
    source = f"questions of {data}" if data else "SQuAD questions shipped with vleff"
    if data is None and loaded.name in PRESETS:
        source += ", tokens of bert-base-uncased"
        ids = with_special_tokens(bert_question_ids(), config)
    else:
        ids = tokenize(_tokenizer(loaded), questions(data), form.maximum_length)
    mixed = form.one_sequence and images == "mixed"
    return pair_samples(ids, f"{source}, padded to the longest", Photos(photos, seed), form, mixed)


def _tokenizer(loaded: LoadedModel) -> Any:
    name = PRESETS[loaded.name].hub_name if loaded.name in PRESETS else loaded.name
    message = (
        f"no tokenizer found for {name}; give as model a directory that holds a model and its tokenizer, or "
        "a preset without a data file"
    )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(message) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a directory without one
        raise ValueError(message)
    return tokenizer


def _maximum_length(config: transformers.PretrainedConfig) -> int:
    # RoBERTa's positions start after the padding id
    return config.max_position_embeddings - (2 if "roberta" in config.model_type else 0)
