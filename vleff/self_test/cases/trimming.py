"""trim_tokens, trim_heads and sum_rows."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vleff.ops import (
    sum_rows,
    sum_rows_reference,
    trim_heads,
    trim_heads_reference,
    trim_tokens,
    trim_tokens_reference,
)
from vleff.self_test.case import Case, Draw, offsets_of

WIDTH, RANK, HEADS = 70, 20, 12
LENGTHS = (5, 0, 40, 3)


def cases() -> Iterator[Case]:
    """With and without another token to compare with; gathered gradients."""
    draw = Draw(8)
    plain = _tokens(draw)
    compared = {"other_weight": draw.constant(RANK, WIDTH, scale=0.2), "temperature": draw.constant(1)}
    other = {"other": draw.constant(len(LENGTHS), WIDTH).float(), "pinned": draw.chances(0.2, sum(LENGTHS))}
    for name, change in (
        ("alone", {}),
        ("another modality", compared | other),
        ("pairs", compared | {"paired": True}),
    ):
        arguments = _with_threshold(trim_tokens_reference, plain | change)
        yield Case("trim_tokens", name, _trim_tokens, trim_tokens_reference, arguments)
    for name, memory in (("self attention", 0), ("cross attention", WIDTH)):
        arguments = _with_threshold(trim_heads_reference, _heads(draw, memory))
        yield Case("trim_heads", name, trim_heads, trim_heads_reference, arguments)
    gathered = {"rows": draw.leaf(90, WIDTH), "index": draw.integers(30, 90), "stored": 35}
    yield Case("sum_rows", "rows named often and never", sum_rows, sum_rows_reference, gathered)


def _tokens(draw: Draw) -> dict[str, Any]:
    return {
        "values": draw.constant(sum(LENGTHS), WIDTH),
        "parts": offsets_of(LENGTHS),
        "local_weight": draw.constant(RANK, WIDTH, scale=WIDTH**-0.5),
        "global_weight": draw.constant(RANK, WIDTH, scale=WIDTH**-0.5),
        "hidden_weight": draw.constant(RANK, 2 * RANK, scale=RANK**-0.5),
        "hidden_bias": draw.constant(RANK),
        "score_weight": draw.constant(1, RANK),
        "score_bias": draw.constant(1),
    }


def _heads(draw: Draw, memory: int) -> dict[str, Any]:
    batch = len(LENGTHS)
    return {
        "pooled": draw.constant(batch, WIDTH).float(),
        "memory_pooled": draw.constant(batch, memory).float() if memory else None,
        "hidden_weight": draw.constant(RANK, WIDTH + memory, scale=WIDTH**-0.5),
        "hidden_bias": draw.constant(RANK),
        "score_weight": draw.constant(HEADS, RANK),
        "score_bias": draw.constant(HEADS),
    }


def _with_threshold(reference: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with a threshold in the widest gap between logits near the middle, which no rounding crosses."""
    doubles = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in arguments.items()
    }
    logits = reference(**doubles)[-1].flatten().sort().values
    middle = logits[len(logits) // 4 : -len(logits) // 4]
    widest = int(middle.diff().argmax())
    return arguments | {"threshold": float(middle[widest : widest + 2].mean())}


def _trim_tokens(**arguments: Any) -> tuple[Tensor, ...]:
    """With the survivors alone: on CUDA the op's first result has room for all tokens."""
    survivors, kept_parts, pooled, logits = trim_tokens(**arguments)
    return survivors[: int(kept_parts[-1])], kept_parts, pooled, logits
