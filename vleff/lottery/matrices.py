"""Which linear layers of a transformers model are pruned, and which of their rows and columns a head owns."""

import re
from typing import NamedTuple

from torch import Tensor, nn


class AttentionMatrices(NamedTuple):
    """One attention: the names of its module and linear layers, and its number of heads.

    Each head owns as many rows of query, key and value, and columns of output, one head after the other.
    """

    module: str
    query: str
    key: str
    value: str
    output: str
    heads: int


# query, key, value and output below an attention module, as the families name them
_PROJECTIONS = (
    ("query", "key", "value", None),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("q", "k", "v", "o"),
)
_HEADS = ("num_attention_heads", "num_heads", "n_heads")


def prunable_linears(model: nn.Module, pattern: str | None = None) -> dict[str, nn.Linear]:
    """The linear layers of a model's repeated layers, by name: attention and feed-forward.

    Embeddings, poolers, heads and whatever stands outside of the repeated layers stay dense (reconstruction).

    Args:
        model: any transformers model.
        pattern: a regular expression that names have to contain.

    Raises:
        ValueError: there are none, or `pattern` is none or matches none.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(f"{repeated}.") for repeated in lists)
    }
    if not linears:
        raise ValueError("argument 'model': expected linear layers inside of repeated layers, got none")
    if pattern is None:
        return linears
    try:
        chosen = {name: module for name, module in linears.items() if re.search(pattern, name)}
    except re.error as error:
        raise ValueError(f"argument 'pattern': expected a regular expression, got {pattern!r}: {error}") from error
    if not chosen:
        example = next(iter(linears))
        raise ValueError(f"argument 'pattern': {pattern!r} matches none of {len(linears)} names such as {example}")
    return chosen


def attention_matrices(model: nn.Module) -> list[AttentionMatrices]:
    """The attentions of a model whose query, key, value and output are linear layers, in the order of modules.

    Raises:
        ValueError: there are none.
    """
    found = []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        heads = next((getattr(module, attribute) for attribute in _HEADS if hasattr(module, attribute)), None)
        for *projections, output in _PROJECTIONS:
            if not isinstance(heads, int) or not all(isinstance(children.get(p), nn.Linear) for p in projections):
                continue
            path = _output_beside(model, name) if output is None else f"{name}.{output}"
            if path is not None and (output is None or isinstance(children.get(output), nn.Linear)):
                query, key, value = (f"{name}.{p}" for p in projections)
                found.append(AttentionMatrices(name, query, key, value, path, heads))
                break
    if not found:
        raise ValueError(
            f"argument 'model': expected attentions with linear layers for query, key, value and output, "
            f"got {type(model).__name__} without any that is known"
        )
    return found


def _output_beside(model: nn.Module, name: str) -> str | None:
    """The output of an attention whose projections stand in a module beside it, as in BERT."""
    parent = name.rpartition(".")[0]
    for path in (f"{parent}.output.dense", f"{name}.o"):
        try:
            if isinstance(model.get_submodule(path), nn.Linear):
                return path
        except AttributeError:
            continue
    return None


def spread_heads(scores: Tensor, width: int) -> Tensor:
    """Scores of heads [heads] for each of the [width] rows or columns that they own."""
    return scores.repeat_interleave(width // len(scores))
