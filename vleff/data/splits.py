"""Deterministic splits of reading-comprehension data that share no article, or no paragraph."""

import random
from collections.abc import Sequence
from typing import TypeVar

from vleff.data.span_features import SpanExample
from vleff.data.squad import Paragraph

Item = TypeVar("Item")


def split_paragraphs(
    paragraphs: Sequence[Paragraph], share: float, seed: int = 0
) -> tuple[list[Paragraph], list[Paragraph]]:
    """Two parts, the second with about `share` of the questions, that share no article.

    Where a file has one title only, or none, they share no paragraph instead.

    Raises:
        ValueError: `share` is not between 0 and 1, or a part would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"argument 'share': expected between 0 and 1, got {share}")
    by_title = len({paragraph.title for paragraph in paragraphs}) > 1
    groups: dict[str, list[Paragraph]] = {}
    for paragraph in paragraphs:
        groups.setdefault(paragraph.title if by_title else paragraph.context, []).append(paragraph)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    wanted = share * sum(len(paragraph.questions) for paragraph in paragraphs)
    second: set[str] = set()
    count = 0
    for key in keys:
        if count >= wanted:
            break
        second.add(key)
        count += sum(len(paragraph.questions) for paragraph in groups[key])
    first_part = [paragraph for key in groups if key not in second for paragraph in groups[key]]
    second_part = [paragraph for key in groups if key in second for paragraph in groups[key]]
    if not first_part or not second_part:
        raise ValueError(f"argument 'paragraphs': expected two articles or paragraphs at least, got {len(groups)}")
    return first_part, second_part


def sample(items: Sequence[Item], count: int, seed: int = 0) -> list[Item]:
    """`count` of the items, the same for the same seed, in their order.

    Raises:
        ValueError: there are fewer.
    """
    if count > len(items):
        raise ValueError(f"argument 'count': expected at most {len(items)}, the items, got {count}")
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[number] for number in chosen]


def answerable(examples: Sequence[SpanExample]) -> list[SpanExample]:
    """The examples with an answer."""
    return [example for example in examples if example.answers]
