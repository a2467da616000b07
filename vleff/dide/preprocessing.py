"""Preprocessor: texts and images as the towers of a dual encoder take them, and the versions of what they become."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vleff.data import preprocessor
from vleff.dide.dual_encoder import DualEncoder
from vleff.dide.version import RepresentationVersion

# of configs and processors: what does not decide about a representation
_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "image_processor_type",
    "label2id",
    "problem_type",
    "processor_class",
    "return_dict",
    "torch_dtype",
    "transformers_version",
}


class Preprocessor(preprocessor.Preprocessor):
    """A tokenizer and an image processor of transformers, and the versions of what becomes of their outputs."""

    def version(self, model: DualEncoder, modality: str) -> RepresentationVersion:
        """What makes the representations of a modality now.

        Args:
            model: hashed at about 1 GB/s; accelerated or not, that makes no difference.
            modality: "image" or "text".

        Raises:
            ValueError: `modality` is something else.
        """
        if modality not in ("image", "text"):
            raise ValueError(f"argument 'modality': expected image or text, got {modality!r}")
        config: Any = getattr(model.config, f"{modality}_config")
        settings = {f"tower.{name}": value for name, value in config.to_dict().items() if name not in _IRRELEVANT}
        settings["pooling"] = getattr(model.config, f"{modality}_pooling")
        settings["is_unit"] = model.config.task == "retrieval"
        processed = self._text_settings() if modality == "text" else self._image_settings()
        settings |= {f"preprocessing.{name}": value for name, value in processed.items()}
        return RepresentationVersion(modality, _hash(_weights(model, modality)), settings)

    def _image_settings(self) -> dict[str, Any]:
        settings = json.loads(json.dumps(self.image_processor.to_dict(), default=str))
        return {name: value for name, value in settings.items() if name not in _IRRELEVANT}

    def _text_settings(self) -> dict[str, Any]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = json.loads(backend.to_str()) if backend is not None else self.tokenizer.get_vocab()
        # a call's padding and truncation stay behind in the tokenizer
        content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
        text = json.dumps(content, sort_keys=True).encode()
        return {"tokenizer": hashlib.sha256(text).hexdigest(), "max_length": self.max_length}


def _weights(model: nn.Module, modality: str) -> Iterator[tuple[str, Tensor]]:
    for part in (f"{modality}_model", f"{modality}_projection"):
        for name, value in sorted(model.get_submodule(part).state_dict().items()):
            yield f"{part}.{name}", value


def _hash(weights: Iterator[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        plain = value.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
