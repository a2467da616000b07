"""SmartTrimConfig: how tokens and heads are trimmed, and how trimmers learn it."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

TRAININGS = ("masked", "gathered")


@dataclass(frozen=True)
class SmartTrimConfig:
    """How tokens and heads are trimmed.

    The paper (SmartTrim, LREC-COLING 2024, arXiv 2305.15033) fixes that light modules in every layer prune tokens and
    heads of each input, with straight-through training and self-distillation; its authors released no code. All
    values below, and whatever the trimmers compute in detail, are reconstructions.

    Attributes:
        tokens, heads: whether tokens and heads are trimmed.
        layers: numbers of the layers before which trimmers stand; None for every layer but the first.
        reduction: trimmers work at 1 / reduction of the model's width.
        initial_logit: of keeping a token or head, before training: everything is kept.
        threshold: a token or head is kept, at inference, if its probability is above this.
        temperature: of the straight-through Gumbel-sigmoid in training.
        training: "masked" computes all tokens and hides the dropped ones, so that gradients reach these, too;
            "gathered" computes kept tokens only.
        token_target, head_target: shares to keep, averaged over layers and samples.
        flop_target: share of the multiply-adds in layers and trimmers to keep; if given, it takes the place of the
            other two targets.
        distillation: weight of the divergence from the full model's predictions.
        cost: weight of the squared distance between shares and targets.
        curriculum: the share of training in which the targets fall linearly from 1 to their values.
        merge_dropped: whether the tokens dropped of a sample live on as one, their mean, that counts as many in
            the attention as were dropped.
        random_shares: trims at random instead of by trimmers, as many tokens and heads of each sample as are said
            here: for each module and stream ("module/stream") the kept shares of the initial tokens by layer, under
            "tokens", and of heads by layer, under the name of each attention block. `Kept.random_shares` makes it.

    Raises:
        ValueError: a value is out of its range.
    """

    tokens: bool = True
    heads: bool = True
    layers: tuple[int, ...] | None = None
    reduction: int = 8
    initial_logit: float = 4.0
    threshold: float = 0.5
    temperature: float = 1.0
    training: str = "masked"
    token_target: float = 0.5
    head_target: float = 0.5
    flop_target: float | None = None
    distillation: float = 1.0
    cost: float = 20.0
    curriculum: float = 0.4
    merge_dropped: bool = False
    random_shares: dict[str, dict[str, list[float]]] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        flops = 1.0 if self.flop_target is None else self.flop_target
        checks = (
            ("layers", all(layer >= 0 for layer in self.layers or ()), "numbers of layers"),
            ("reduction", self.reduction >= 1, "at least 1"),
            ("threshold", 0 < self.threshold < 1, "between 0 and 1"),
            ("temperature", self.temperature > 0, "above 0"),
            ("training", self.training in TRAININGS, f"one of {', '.join(TRAININGS)}"),
            ("token_target", 0 < self.token_target <= 1, "above 0, up to 1"),
            ("head_target", 0 < self.head_target <= 1, "above 0, up to 1"),
            ("flop_target", 0 < flops <= 1, "above 0, up to 1"),
            ("distillation", self.distillation >= 0, "at least 0"),
            ("cost", self.cost >= 0, "at least 0"),
            ("curriculum", 0 <= self.curriculum <= 1, "a share between 0 and 1"),
        )
        for name, fits, expected in checks:
            if not fits:
                raise ValueError(f"argument '{name}': expected {expected}, got {getattr(self, name)!r}")

    @property
    def threshold_logit(self) -> float:
        """The logit of `threshold`."""
        return math.log(self.threshold / (1 - self.threshold))

    def trims_before(self, layer: int) -> bool:
        """Whether trimmers stand before this layer."""
        return layer > 0 if self.layers is None else layer in self.layers

    def target_at(self, target: float, progress: float) -> float:
        """A target after a share `progress` of training: linear from 1 to its value over `curriculum`."""
        if progress >= self.curriculum:
            return target
        return 1 - (1 - target) * max(progress, 0.0) / self.curriculum

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return asdict(self)
