"""Self-attention attribution: how much each head of a model contributes to its answers."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from vleff.lottery.matrices import AttentionMatrices, attention_matrices
from vleff.training.checkpoints import reading

Batch = Mapping[str, Tensor]
Objective = Callable[[Any, Batch], Tensor]

STEPS = 20  # of the authors of self-attention attribution (AttAttr)
_SOFTMAX = {torch.softmax, torch.nn.functional.softmax, Tensor.softmax}
_FORMAT = 1


@dataclass
class HeadScores:
    """The scores of a model's heads.

    Attributes:
        scores: float64 [heads] by the name of the attention's module.
        examples: over how many examples they were summed.
        steps: in how many steps each attention was integrated.
    """

    scores: dict[str, Tensor]
    examples: int = 0
    steps: int = STEPS

    def save(self, path: str | Path) -> None:
        """Writes the scores as JSON.

        Raises:
            FileExistsError: there is such a file.
        """
        content = {
            "format": _FORMAT,
            "examples": self.examples,
            "steps": self.steps,
            "scores": {name: scores.tolist() for name, scores in self.scores.items()},
        }
        with Path(path).open("x", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    @classmethod
    def load(cls, path: str | Path) -> "HeadScores":
        """The scores that `save` wrote.

        Raises:
            ValueError: the file is something else.
        """
        with reading(Path(path)):
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise ValueError(f"{path}: expected head scores of format {_FORMAT}")
            scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in content["scores"].items()}
            return cls(scores, content["examples"], content["steps"])

    def plot(self, path: str | Path) -> None:
        """Draws the scores, each relative to the mean of its attention, as a map: attentions down, heads across."""
        from matplotlib.figure import Figure

        width = max(len(scores) for scores in self.scores.values())
        rows = [
            torch.nn.functional.pad(scores / scores.mean(), (0, width - len(scores)), value=torch.nan)
            for scores in self.scores.values()
        ]
        figure = Figure(figsize=(1.5 + 0.45 * width, 1.2 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(torch.stack(rows).numpy(), aspect="auto", cmap="viridis")
        axes.set_yticks(range(len(rows)), list(self.scores), fontsize=7)
        axes.set_xticks(range(width))
        axes.set_xlabel("head")
        figure.colorbar(image, label="score / mean of its attention")
        figure.savefig(path)


def attention_attribution(
    model: PreTrainedModel, batches: Iterable[Batch], objective: Objective, steps: int = STEPS
) -> HeadScores:
    """Scores each head by the attribution of an objective to its attention (AttAttr, Hao et al. 2021).

    Of one attention at a time, the probabilities A of all heads are replaced by a·A, a = i / steps for i = 0 to
    steps - 1; its attribution is A ⊙ Σ ∂F/∂(a·A) / steps. A head's score is the sum over examples of the largest
    attribution among its unpadded positions.

    Args:
        model: any transformers model whose attention goes through softmax when it is set to "eager"; not
            accelerated. It is left as it was.
        batches: keyword arguments of the model, tensors [examples, ...].
        objective: objective(outputs, batch) -> F [examples], for example `span_probability`.
        steps: of the integral.

    Raises:
        ValueError: the model has no attentions that are known, or does not run them by softmax.
    """
    if steps < 1:
        raise ValueError(f"argument 'steps': expected at least 1, got {steps}")
    attentions = attention_matrices(model)
    scores = {attention.module: torch.zeros(attention.heads, dtype=torch.float64) for attention in attentions}
    examples = 0
    total = len(batches) if isinstance(batches, Sized) else None
    with _prepared(model):
        for batch in track(batches, "attributing to heads", total=total, transient=True):
            examples += _size(batch)
            for attention in attentions:
                largest = _attribution(model, batch, attention, objective, steps)
                scores[attention.module] += largest.sum(0).cpu()
    return HeadScores(scores, examples, steps)


def span_probability(outputs: Any, batch: Batch) -> Tensor:
    """P(start) · P(end) of the gold span, [examples]; padding cannot be either.

    The batch has `start_positions`, `end_positions` and, where it is padded, `attention_mask`.
    """
    mask = batch.get("attention_mask")

    def probability(logits: Tensor, gold: Tensor) -> Tensor:
        logits = logits if mask is None else logits.masked_fill(mask == 0, -torch.inf)
        return logits.softmax(-1).gather(1, gold[:, None]).squeeze(1)

    start = probability(outputs.start_logits, batch["start_positions"])
    return start * probability(outputs.end_logits, batch["end_positions"])


def class_probability(outputs: Any, batch: Batch) -> Tensor:
    """The probability of the gold class, [examples]; the batch has `labels` [examples]."""
    return outputs.logits.softmax(-1).gather(1, batch["labels"][:, None]).squeeze(1)


def sequence_probability(outputs: Any, batch: Batch) -> Tensor:
    """The mean probability of the gold tokens, [examples]; the batch has `labels` [examples, tokens], -100 ignored."""
    labels = batch["labels"]
    known = labels != -100
    found = outputs.logits.softmax(-1).gather(2, labels.clamp(min=0)[:, :, None]).squeeze(2)
    return (found * known).sum(1) / known.sum(1)


class _ScaledAttention(TorchFunctionMode):
    """While one module runs, its attention probabilities A are replaced by a·A, a leaf to differentiate by."""

    def __init__(self, module: nn.Module, alphas: Tensor) -> None:
        super().__init__()
        self.alphas, self.running = alphas, False
        self.attention: Tensor | None = None  # A
        self.leaf: Tensor | None = None  # a·A
        self.hooks = (
            module.register_forward_pre_hook(lambda *_: self._set_running(True)),
            module.register_forward_hook(lambda *_: self._set_running(False)),
        )

    def _set_running(self, running: bool) -> None:
        self.running = running

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.running or function not in _SOFTMAX:
            return result
        self.attention = result.detach()
        self.leaf = (self.attention * self.alphas.view(-1, 1, 1, 1).to(result)).requires_grad_()
        return self.leaf

    def __exit__(self, *arguments: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*arguments)


def _attribution(
    model: PreTrainedModel, batch: Batch, attention: AttentionMatrices, objective: Objective, steps: int
) -> Tensor:
    """The largest attribution of each head in each example, float64 [examples, heads]."""
    examples = _size(batch)
    alphas = (torch.arange(steps) / steps).repeat_interleave(examples)
    repeated = {name: _repeat(value, steps, examples) for name, value in batch.items()}
    gold = {"start_positions", "end_positions"} | (set() if model.config.is_encoder_decoder else {"labels"})
    inputs = {name: value for name, value in repeated.items() if name not in gold}  # no loss
    with torch.enable_grad(), _ScaledAttention(model.get_submodule(attention.module), alphas) as scaled:
        value = objective(model(**inputs), repeated)
    if scaled.leaf is None or scaled.attention is None:
        raise ValueError(
            f"argument 'model': expected {attention.module} to call softmax, as transformers' eager attention does; "
            "an accelerated model does not: call vleff.restore(model) first"
        )
    if value.shape != (steps * examples,):
        raise ValueError(f"argument 'objective': expected a result [examples], got {list(value.shape)}")
    gradient = torch.autograd.grad(value.sum(), scaled.leaf)[0].double()
    by_step = gradient.view(steps, examples, *gradient.shape[1:]).sum(0)
    probabilities = scaled.attention[:examples].double()
    attribution = probabilities * by_step / steps
    seen = probabilities.sum((1, 2)) > 0  # [examples, keys]: padding has no attention
    valid = seen[:, None, None, :].expand_as(attribution)
    if attribution.shape[-1] == attribution.shape[-2]:
        valid = valid & seen[:, None, :, None]
    return attribution.masked_fill(~valid, -torch.inf).flatten(2).amax(2)


def _repeat(value: Any, steps: int, examples: int) -> Any:
    return value.repeat(steps, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value


def _size(batch: Batch) -> int:
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.dim())


@contextmanager
def _prepared(model: PreTrainedModel) -> Iterator[None]:
    """Eager attention, no dropout, no gradients of parameters; everything as it was afterwards."""
    training = {module: module.training for module in model.modules()}
    requiring = [parameter for parameter in model.parameters() if parameter.requires_grad]
    implementation = model.config._attn_implementation
    can_set = model._can_set_attn_implementation()
    try:
        model.eval().requires_grad_(False)
        if can_set and implementation in (None, "sdpa", "flash_attention_2"):
            model.set_attn_implementation("eager")
        yield
    finally:
        if can_set and model.config._attn_implementation != implementation:
            model.set_attn_implementation(implementation)
        for parameter in requiring:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode
