"""Gradual magnitude pruning, softened by attention attribution, in anyone's training loop or in a Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from vleff.lottery.attribution import HeadScores
from vleff.lottery.config import LotteryConfig
from vleff.lottery.matrices import attention_matrices, prunable_linears
from vleff.lottery.ranking import combined_scores, select_masks
from vleff.training.checkpoints import replace_file


class GradualPruner:
    """Prunes a model's linear layers step by step while it is trained.

        pruner = GradualPruner(model, LotteryConfig(sparsity=0.7, end_step=1000), head_scores)
        for number, batch in enumerate(batches, start=1):
            model(**batch).loss.backward()
            optimizer.step()
            pruner.step(number)
        lottery.extract(model, pruner.masks)

    A weight that was pruned stays zero: each step sets it to zero again, whatever an optimizer did to it.

    Args:
        model: any transformers model.
        config: how much is pruned when.
        head_scores: of `attention_attribution`; None prunes by magnitude alone.

    Raises:
        ValueError: the model has no prunable layers, or, with `head_scores`, no attentions that are known.
        KeyError: an attention has no scores.
    """

    def __init__(self, model: nn.Module, config: LotteryConfig, head_scores: HeadScores | None = None) -> None:
        self.config = config
        self._linears = prunable_linears(model, config.matrices)
        self._attentions = [] if head_scores is None else attention_matrices(model)
        self._head_scores = {} if head_scores is None else head_scores.scores
        for attention in self._attentions:
            if attention.module not in self._head_scores:
                raise KeyError(f"argument 'head_scores': expected scores of {attention.module}, got none")
        self._masks = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in self._linears.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """bool [out_features, in_features] by the names of the layers, True where a weight stays."""
        return dict(self._masks)

    @property
    def sparsity(self) -> float:
        """The share of weights that is pruned now."""
        total = sum(mask.numel() for mask in self._masks.values())
        return 1 - sum(int(mask.sum()) for mask in self._masks.values()) / total

    def step(self, number: int) -> None:
        """To be called after each optimizer step.

        Args:
            number: of the step, from 1 on.
        """
        weights = {name: layer.weight for name, layer in self._linears.items()}  # the model may have been moved
        self._masks = {name: mask.to(weights[name].device) for name, mask in self._masks.items()}
        if self.config.prunes_after(number):
            self._prune(self.config.sparsity_at(number))
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(self._masks[name])

    def _prune(self, sparsity: float) -> None:
        weights = {name: layer.weight for name, layer in self._linears.items()}
        scores = combined_scores(weights, self._attentions, self._head_scores, self.config)
        for name, score in scores.items():
            score.masked_fill_(~self._masks[name], -1.0)
        self._masks = select_masks(scores, sparsity, self.config.ranking)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, uint8, eight weights a byte."""
        return {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the masks of `state_dict`.

        Raises:
            ValueError: they are of other layers.
        """
        if state.keys() != self._masks.keys():
            raise ValueError(
                f"argument 'state': expected masks of {len(self._masks)} layers such as {next(iter(self._masks))}, "
                f"got {len(state)} such as {next(iter(state), 'none')}"
            )
        masks = {}
        for name, mask in self._masks.items():
            bits = np.unpackbits(state[name].cpu().numpy(), count=mask.numel())
            masks[name] = torch.from_numpy(bits).bool().view(mask.shape).to(mask.device)
        self._masks = masks


class PruningCallback(TrainerCallback):
    """A `GradualPruner` in a `transformers.Trainer`.

    Its masks are saved in each checkpoint, as `pruning.safetensors`, and taken from there when training is
    resumed: so an interrupted run ends in the same masks.

    Args:
        pruner: of the model that is trained.
    """

    FILE = "pruning.safetensors"

    def __init__(self, pruner: GradualPruner) -> None:
        self.pruner = pruner

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Loads the masks of the checkpoint that is resumed.

        Raises:
            FileNotFoundError: it holds none.
        """
        if state.global_step == 0:
            return
        folders = [Path(args.output_dir) / f"checkpoint-{state.global_step}"]
        if isinstance(args.resume_from_checkpoint, str):
            folders.insert(0, Path(args.resume_from_checkpoint))
        for folder in folders:
            if (folder / self.FILE).exists():
                return self.pruner.load_state_dict(load_file(folder / self.FILE))
        raise FileNotFoundError(f"no {self.FILE} in {' or '.join(map(str, folders))}: the masks cannot be resumed")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prunes, if it is time to, and keeps pruned weights at zero."""
        self.pruner.step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves the masks in the checkpoint."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
            replace_file(path, lambda part: save_file(self.pruner.state_dict(), part))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the sparsity to the logs."""
        if logs is not None:
            logs["sparsity"] = self.pruner.sparsity
