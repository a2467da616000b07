"""What a model predicts, and how far two predictions are apart."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_SPANS = ("start_logits", "end_logits")
_PAIRS = ("logits_per_image", "logits_per_text")
_SINGLE = ("logits", "decoder_logits", "itm_score")
_DECODER = "text_decoder"


class Prediction(NamedTuple):
    """Logits that a model makes of a batch.

    Attributes:
        logits: [batch, ..., classes].
        independent: whether each class is true or not by itself (sigmoid), or one of them is true (softmax).
        weights: [batch, ...], which of several predictions of a sample count; None for all alike.
        summed: whether independent classes are summed up, as in visual question answering, or averaged.
    """

    logits: Tensor
    independent: bool = False
    weights: Tensor | None = None
    summed: bool = True


@contextmanager
def outputs_kept(model: nn.Module) -> Iterator[list[Any]]:
    """Within it, the outputs of a decoder whose logits the model itself does not return are appended to the list."""
    found: list[Any] = []
    decoder = getattr(model, _DECODER, None)
    if decoder is None:
        yield found
        return
    handle = decoder.register_forward_hook(lambda module, arguments, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def predictions_of(model: nn.Module, inputs: Mapping[str, Any], outputs: Any, decoded: Any = None) -> list[Prediction]:
    """The predictions in a model's outputs, for whatever head: classes, answers, spans, tokens, pairs.

    Args:
        model: the transformers model.
        inputs: the call's arguments, labels included.
        outputs: a ModelOutput.
        decoded: the output of the model's decoder, if it has one.

    Raises:
        ValueError: there are no logits among the outputs.
    """
    labels = inputs.get("labels")
    if all(name in outputs for name in _SPANS):
        return [Prediction(outputs[name]) for name in _SPANS]
    if all(name in outputs for name in _PAIRS):
        return [Prediction(outputs[name]) for name in _PAIRS]
    logits = next((outputs[name] for name in _SINGLE if outputs.get(name) is not None), None)
    if logits is None and decoded is not None:
        logits = decoded.logits
    if logits is None:
        raise ValueError(f"outputs: expected logits, got {', '.join(outputs.keys())}; pass `predictions`")
    if labels is not None and labels.shape == logits.shape and labels.is_floating_point():
        config: Any = model.config
        return [Prediction(logits, True, summed=config.problem_type != "multi_label_classification")]
    if logits.dim() == 3:
        return [Prediction(logits, weights=_token_weights(inputs, logits))]
    return [Prediction(logits)]


def divergence(target: Prediction, prediction: Prediction) -> Tensor:
    """KL(target || prediction), averaged over the predictions that count; gradients reach `prediction` only."""
    wanted, got = target.logits.detach().float(), prediction.logits.float()
    if target.independent:
        probability = wanted.sigmoid()
        own = functional.binary_cross_entropy_with_logits(wanted, probability, reduction="none")
        apart = functional.binary_cross_entropy_with_logits(got, probability, reduction="none") - own
        apart = apart.sum(-1) if target.summed else apart.mean(-1)
    else:
        logs = wanted.log_softmax(-1)
        apart = (logs.exp() * (logs - got.log_softmax(-1))).sum(-1)
    if target.weights is None:
        return apart.mean()
    weights = target.weights.to(apart.dtype)
    return (apart * weights).sum() / weights.sum().clamp(min=1)


def _token_weights(inputs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """[batch, length], 1 where a token of the output counts."""
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.shape == logits.shape[:2] and bool((labels == -100).any()):
        return (labels != -100).float()
    for name in ("decoder_attention_mask", "attention_mask"):
        mask = inputs.get(name)
        if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
            return mask.float()
    return torch.ones(logits.shape[:2], device=logits.device)
