"""DualEncoderConfig: the sizes and the task of a dual encoder."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

TASKS = ("vqa", "nlvr2", "snli-ve", "retrieval")
POOLINGS = ("pooler", "first", "mean")

# the classes of each task, where the data do not say otherwise
_LABELS = {"vqa": 3129, "nlvr2": 2, "snli-ve": 3}


class DualEncoderConfig(PreTrainedConfig):
    """The sizes and the task of a dual encoder (arXiv 2112.08723).

    Attributes:
        text_config, image_config: of the towers, of any transformers encoders. A ViltConfig stands for a tower of
            ViLT's layers over one modality alone, any other one for the model that AutoModel makes of it.
        text_class, image_class: the towers' classes in transformers, where AutoModel knows none for their configs.
        task: "vqa" (answers are classes), "nlvr2" (a text and two images), "snli-ve" (entailment) or "retrieval".
        num_labels: classes of the task; 3,129, 2 or 3 if left out.
        width: of the representations, that are stored. None takes the width of the text tower.
        text_pooling, image_pooling: what becomes of a tower's output: its own "pooler" (of ViLT a tanh over
            token 0, as in the paper), its "first" token, or the "mean" of its tokens (reconstruction: the paper has
            ViLT only).
        temperature: of the first step of retrieval, whose scores are cosines divided by it (reconstruction: CLIP's).
        initializer_range: standard deviation of the heads' first weights (reconstruction: ViLT's).

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "vleff_dual_encoder"
    sub_configs: ClassVar[Any] = {"text_config": AutoConfig, "image_config": AutoConfig}

    text_config: Any = None
    image_config: Any = None
    text_class: str | None = None
    image_class: str | None = None
    task: str = "vqa"
    width: int | None = None
    text_pooling: str = "pooler"
    image_pooling: str = "pooler"
    temperature: float = 0.07
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("text_config", "image_config"):
            part = getattr(self, name)
            if not isinstance(part, PreTrainedConfig):
                part = AutoConfig.for_model(**({"model_type": "vilt"} | (part or {})))
            setattr(self, name, part)
        checks = (
            ("task", self.task, TASKS),
            ("text_pooling", self.text_pooling, POOLINGS),
            ("image_pooling", self.image_pooling, POOLINGS),
        )
        for name, value, expected in checks:
            if value not in expected:
                raise ValueError(f"argument '{name}': expected one of {', '.join(expected)}, got {value!r}")
        if self.temperature <= 0:
            raise ValueError(f"argument 'temperature': expected a positive number, got {self.temperature}")
        self.width = self.width or self.text_config.hidden_size
        if self.task in _LABELS and self.id2label is None and "num_labels" not in kwargs:
            kwargs["num_labels"] = _LABELS[self.task]
        super().__post_init__(**kwargs)


AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig)
