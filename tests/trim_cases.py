"""Arguments of trim_tokens and trim_heads."""

import torch

LENGTHS = ((5, 1, 30), (0, 3, 0, 0, 70, 1), (), (24, 25, 49), (1,))
SIZES = ((64, 8), (40, 5), (17, 3), (768, 96), (130, 100))


def offsets_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def token_arguments(
    lengths: tuple[int, ...],
    width: int,
    rank: int,
    kind: str = "alone",
    dtype: torch.dtype = torch.float64,
    outliers: bool = False,
) -> dict[str, object]:
    """Arguments by name; kind is "alone", "paired" (an even number of lengths) or "other"."""
    parts = offsets_of(lengths)
    values = torch.randn(int(parts[-1]), width, dtype=dtype) * 3 + 0.5
    if outliers:
        values[:, width // 2] += 60
    arguments: dict[str, object] = {
        "values": values,
        "parts": parts,
        "local_weight": torch.randn(rank, width, dtype=dtype) / width**0.5,
        "global_weight": torch.randn(rank, width, dtype=dtype) / width**0.5,
        "hidden_weight": torch.randn(rank, 2 * rank, dtype=dtype) / rank**0.5,
        "hidden_bias": torch.randn(rank, dtype=dtype),
        "score_weight": torch.randn(1, rank, dtype=dtype),
        "score_bias": torch.tensor([-0.3], dtype=dtype),
        "threshold": 0.1,
    }
    if kind != "alone":
        other_width = width if kind == "paired" else width + 3
        arguments |= {
            "other_weight": torch.randn(rank, other_width, dtype=dtype) / other_width**0.5,
            "temperature": torch.tensor([1.5], dtype=dtype),
            "paired": kind == "paired",
        }
    if kind == "other":
        arguments["other"] = torch.randn(len(lengths), width + 3, dtype=dtype)
    return arguments


def cast(arguments: dict[str, object], dtype: torch.dtype) -> dict[str, object]:
    """The same in another dtype, except what is float32 in any case."""
    return {
        name: value.to(torch.float32 if name in ("other", "pooled", "memory_pooled") else dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }


def head_arguments(batch: int, width: int, memory_width: int, rank: int, heads: int) -> dict[str, object]:
    kinds = {"dtype": torch.float64}
    return {
        "pooled": torch.randn(batch, width, **kinds),
        "memory_pooled": torch.randn(batch, memory_width, **kinds) if memory_width else None,
        "hidden_weight": torch.randn(rank, width + memory_width, **kinds) / width**0.5,
        "hidden_bias": torch.randn(rank, **kinds),
        "score_weight": torch.randn(heads, rank, **kinds),
        "score_bias": torch.randn(heads, **kinds),
        "threshold": 0.2,
    }
