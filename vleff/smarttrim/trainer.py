"""SmartTrimTrainer: transformers' Trainer with the loss of trimming."""

from typing import Any

from torch import Tensor
from transformers import Trainer

from vleff.smarttrim.objective import Predictions, TaskLoss, TrainingLoss, training_loss


class SmartTrimTrainer(Trainer):
    """Trains an attached model: a Trainer whose training steps have the loss of `training_loss`.

    Evaluation and prediction run the trimmed model with its usual loss. Logs tell the parts of the loss, and the
    shares of tokens, heads and multiply-adds kept. Checkpoints hold the trimmers; resuming goes on with the same
    draws.

    Args:
        task_loss, predictions: as of `training_loss`.
        arguments: of Trainer.
    """

    def __init__(
        self,
        *args: Any,
        task_loss: TaskLoss | None = None,
        predictions: Predictions | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(*args, **arguments)
        self.task_loss, self.predictions = task_loss, predictions
        self.model_accepts_loss_kwargs = False  # the loss of a step is a mean, whatever the model's own forward takes
        self._since_log: list[dict[str, float]] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return self._plain_loss(model, inputs, return_outputs)
        parts: TrainingLoss = training_loss(
            model, inputs, self.state.global_step, self.state.max_steps, self.task_loss, self.predictions
        )
        self._since_log.append({name: value for name, value in parts.numbers().items() if name != "loss"})
        return (parts.loss, parts.outputs) if return_outputs else parts.loss

    def log(self, logs: dict[str, float], *args: Any, **arguments: Any) -> None:
        if self._since_log and "loss" in logs:
            steps = len(self._since_log)
            logs |= {name: sum(one[name] for one in self._since_log) / steps for name in self._since_log[0]}
            self._since_log = []
        super().log(logs, *args, **arguments)

    def _plain_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        outputs = model(**inputs)
        loss: Tensor = outputs.loss if self.task_loss is None else self.task_loss(outputs, inputs)
        return (loss, outputs) if return_outputs else loss
