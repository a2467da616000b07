"""LotteryConfig: how a subnetwork is found."""

from dataclasses import asdict, dataclass
from typing import Any

RANKINGS = ("global", "matrix")


@dataclass(frozen=True)
class LotteryConfig:
    """How a subnetwork is found.

    The paper ("Less Is More", Findings of EMNLP 2021) fixes gradual magnitude pruning on the source domain,
    weighed by self-attention attribution; its authors released no code. All values are reconstructions.

    Attributes:
        sparsity: the share of weights pruned in the end, in [0, 1).
        start_step, end_step: the optimizer steps between which sparsity grows from 0, by a cubic schedule.
        interval: optimizer steps between two prunings.
        ranking: "global" compares the scores of all matrices, "matrix" those of each matrix by itself.
        strength: the exponent of a head's score in the scores of its weights; 0 leaves attribution out.
        least_head, most_head: the range of a head's score, relative to the mean of its attention.
        matrices: a regular expression that the names of pruned linear layers contain; None takes all those of
            the attentions and feed-forwards of the repeated layers.

    Raises:
        ValueError: a value is out of its range.
    """

    sparsity: float
    end_step: int
    start_step: int = 0
    interval: int = 10
    ranking: str = "global"
    strength: float = 1.0
    least_head: float = 0.1
    most_head: float = 10.0
    matrices: str | None = None

    def __post_init__(self) -> None:
        checks = (
            ("sparsity", 0 <= self.sparsity < 1, "at least 0 and below 1"),
            ("start_step", self.start_step >= 0, "at least 0"),
            ("end_step", self.end_step > self.start_step, f"more than start_step = {self.start_step}"),
            ("interval", self.interval >= 1, "at least 1"),
            ("ranking", self.ranking in RANKINGS, f"one of {', '.join(RANKINGS)}"),
            ("strength", self.strength >= 0, "at least 0"),
            ("least_head", 0 < self.least_head <= self.most_head, f"above 0, up to most_head = {self.most_head}"),
        )
        for name, fits, expected in checks:
            if not fits:
                raise ValueError(f"argument '{name}': expected {expected}, got {getattr(self, name)!r}")

    def sparsity_at(self, step: int) -> float:
        """The share of weights pruned after an optimizer step: s · (1 - (1 - progress)³) (Zhu and Gupta 2017)."""
        progress = (step - self.start_step) / (self.end_step - self.start_step)
        return self.sparsity * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)

    def prunes_after(self, step: int) -> bool:
        """Whether weights are pruned after this optimizer step; the last time after `end_step`."""
        due = self.start_step < step < self.end_step and (step - self.start_step) % self.interval == 0
        return due or step == self.end_step

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return asdict(self)
