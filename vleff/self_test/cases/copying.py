"""copy_attention with its rows and top words, vocabulary_log_probs and top_words."""

from collections.abc import Iterator
from typing import Any

import torch

from vleff.ops import (
    CopyMemory,
    copy_attention,
    copy_attention_reference,
    copy_attention_rows,
    copy_attention_rows_reference,
    copy_attention_top,
    copy_attention_top_reference,
    top_words,
    top_words_reference,
    vocabulary_log_probs,
    vocabulary_log_probs_reference,
)
from vleff.self_test.case import Case, Draw, offsets_of

WIDTH, WORDS, EXTENDED = 70, 200, 210
TARGETS, QUESTIONS, PARAGRAPHS = (3, 0, 66, 2), (5, 2, 7, 0), (70, 0, 9, 0)


def cases() -> Iterator[Case]:
    """Training and beam search, with samples that have no memory."""
    draw = Draw(5)
    shared = {
        "queries": draw.leaf(sum(TARGETS), WIDTH),
        "query_offsets": offsets_of(TARGETS),
        "max_queries": max(TARGETS),
        "question": _memory(draw, QUESTIONS),
        "paragraph": _memory(draw, PARAGRAPHS),
        "gate_logits": draw.leaf(sum(TARGETS), 3),
    }
    generate = draw.constant(sum(TARGETS)).float() - 5
    generate[draw.chances(0.2, sum(TARGETS))] = -torch.inf
    training = shared | {
        "generate_log_probs": generate.requires_grad_(),
        "targets": draw.integers(EXTENDED, sum(TARGETS)),
        "coverage": True,
    }
    yield Case("copy_attention", "with coverage", copy_attention, copy_attention_reference, training)
    hidden, weight, bias = draw.leaf(sum(TARGETS), WIDTH), draw.leaf(WORDS, WIDTH, scale=0.2), draw.leaf(WORDS)
    search = _without_gradients(shared | {"extended_size": EXTENDED})
    rows = search | {"vocabulary_logits": draw.constant(sum(TARGETS), WORDS)}
    yield Case("copy_attention_rows", "beams", copy_attention_rows, copy_attention_rows_reference, rows)
    likeliest = {"hidden": hidden, "weight": weight, "bias": bias, "count": 5, "watched": 3}
    top = search | _without_gradients(likeliest)
    yield Case("copy_attention_top", "beams", copy_attention_top, copy_attention_top_reference, top)
    equals = {"rows": (2 * draw.constant(9, 300)).round().float(), "count": 5}
    yield Case("top_words", "equal values", top_words, top_words_reference, equals, (torch.float32,))
    vocabulary = {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": draw.integers(EXTENDED, sum(TARGETS), dtype=torch.int64),
    }
    yield Case("vocabulary_log_probs", "with a bias", vocabulary_log_probs, vocabulary_log_probs_reference, vocabulary)


def _memory(draw: Draw, lengths: tuple[int, ...]) -> CopyMemory:
    total = sum(lengths)
    return CopyMemory(draw.leaf(total, WIDTH), draw.integers(EXTENDED, total), offsets_of(lengths), max(lengths))


def _without_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    def detached(x: Any) -> Any:
        return x.detach() if isinstance(x, torch.Tensor) else x

    return torch.utils._pytree.tree_map(detached, arguments)
