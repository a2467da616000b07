"""What trimmers and model are trained for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vleff.smarttrim.execution import recorded, running, trimmers_of
from vleff.smarttrim.flops import flop_ratio
from vleff.smarttrim.predictions import Prediction, divergence, outputs_kept, predictions_of
from vleff.smarttrim.record import head_share, token_share

TaskLoss = Callable[[Any, Mapping[str, Any]], Tensor]
Predictions = Callable[[Any, Mapping[str, Any]], Sequence[Prediction]]


@dataclass(frozen=True, eq=False)
class TrainingLoss:
    """One step's loss and what it is made of; numbers with gradients.

    Attributes:
        loss: task + full_task + distillation weight * distillation + cost weight * cost.
        task, full_task: the loss of the trimmed and of the full model.
        distillation: the divergence of the trimmed model's predictions from the full one's.
        cost: squared distances of shares from their targets of this step.
        token_share, head_share, flop_ratio: what the trimmed pass kept of tokens, heads and multiply-adds.
        outputs: of the trimmed model.
    """

    loss: Tensor
    task: Tensor
    full_task: Tensor
    distillation: Tensor
    cost: Tensor
    token_share: Tensor
    head_share: Tensor
    flop_ratio: Tensor
    outputs: Any

    def numbers(self) -> dict[str, float]:
        """All of them but the outputs, for logs."""
        return {name: float(value.detach()) for name, value in vars(self).items() if isinstance(value, Tensor)}


def training_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    step: int,
    total_steps: int,
    task_loss: TaskLoss | None = None,
    predictions: Predictions | None = None,
) -> TrainingLoss:
    """The loss of one training step, from a pass of the full and one of the trimmed model.

        task(trimmed) + task(full) + distillation * KL(full || trimmed) + cost * distances from the targets

    Distances are (token share - target)^2 + (head share - target)^2, or (FLOP ratio - target)^2 if the config says
    so. The targets fall linearly from 1 at first. The full model's predictions are a fixed target of the divergence.

    Args:
        model: attached, in training mode; may be wrapped (DistributedDataParallel, torch.compile).
        inputs: its arguments, with labels.
        step, total_steps: how far training is.
        task_loss: task_loss(outputs, inputs) where the model's outputs have no loss.
        predictions: predictions(outputs, inputs) where they are not among the usual logits.

    Raises:
        ValueError: the model has no trimmers, or outputs have no loss or logits.
    """
    trimmers = trimmers_of(model)
    config = trimmers[0].execution.config
    inner = getattr(model, "module", model)

    def one_pass() -> tuple[Any, Tensor, Sequence[Prediction]]:
        with outputs_kept(inner) as decoded:
            outputs = model(**inputs)
        found = predictions(outputs, inputs) if predictions is not None else None
        if found is None:
            found = predictions_of(inner, inputs, outputs, decoded[-1] if decoded else None)
        loss = task_loss(outputs, inputs) if task_loss is not None else outputs.loss
        if loss is None:
            raise ValueError("outputs: expected a loss; pass labels or `task_loss`")
        return outputs, loss, found

    with running(model, "full"):
        _, full_task, targets = one_pass()
    with recorded(model) as runs:
        outputs, task, made = one_pass()
    distillation = sum((divergence(*pair) for pair in zip(targets, made, strict=True)), torch.zeros(()))
    progress = step / max(total_steps, 1)
    tokens, heads, flops = token_share(runs), head_share(runs), flop_ratio(runs, trimmers)
    cost = torch.zeros(())
    if config.flop_target is not None:
        cost = (flops - config.target_at(config.flop_target, progress)).square()
    else:
        if config.tokens:
            cost = cost + (tokens - config.target_at(config.token_target, progress)).square()
        if config.heads:
            cost = cost + (heads - config.target_at(config.head_target, progress)).square()
    loss = task + full_task + config.distillation * distillation + config.cost * cost
    return TrainingLoss(loss, task, full_task, distillation, cost, tokens, heads, flops, outputs)
