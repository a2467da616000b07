"""The attention implementations "vleff…" in transformers' registries.

transformers builds a 4-D attention mask before the encoder runs; the packed encoder needs the 2-D padding
mask. So an accelerated model's config names one of these implementations: their mask function hands the
padding mask through, and their attention function is the model's former one (SDPA or eager), which serves
every call that does not run packed.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
    sdpa_mask,
)
from transformers.utils.import_utils import is_tracing


def implementations(causal: bool = False) -> dict[str, str]:
    """transformers' implementation -> the one that an accelerated model has instead.

    Args:
        causal: for models whose tokens see only tokens up to their own; their causal mask is left out, too.
    """
    suffix = "_causal" if causal else ""
    return {"sdpa": f"vleff{suffix}", "eager": f"vleff_eager{suffix}"}


def _padding_mask_or(dense_mask: Callable, causal: bool) -> Callable:
    expected = causal_mask_function if causal else bidirectional_mask_function

    def padding_mask(
        *,
        q_length: int,
        kv_length: int,
        mask_function: Callable,
        attention_mask: torch.Tensor | None = None,
        use_vmap: bool = False,
        **arguments: Any,
    ) -> torch.Tensor | None:
        """The bool padding mask [batch, kv_length], None if all tokens are valid.

        Other masks are transformers' own: [batch, 1, q_length, kv_length].
        """
        plain = mask_function is expected and not use_vmap
        plain = plain and (arguments.get("allow_is_bidirectional_skip", False) or (causal and q_length == kv_length))
        if plain and (attention_mask is None or (attention_mask.dim() == 2 and attention_mask.shape[1] == kv_length)):
            if attention_mask is None or (not is_tracing(attention_mask) and attention_mask.all()):
                return None
            return attention_mask
        return dense_mask(
            q_length=q_length,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            **arguments,
        )

    return padding_mask


def _visible(mask: torch.Tensor | None, query: torch.Tensor, causal: bool) -> torch.Tensor | None:
    """The bool mask [batch, 1, q_length or 1, kv_length] that a padding mask stands for, None if all is visible."""
    length = query.shape[2]
    order = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() if causal else None
    if mask is None:
        return None if order is None else order[None, None]
    visible = mask[:, None, None, :]
    return visible if order is None else visible & order


def _dense_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool = False,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if attention_mask is not None and attention_mask.dim() == 2:
        visible = _visible(attention_mask, query, causal)
        attention_mask = None if visible is None else visible.expand(-1, 1, query.shape[2], -1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)


def _dense_eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool = False,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if attention_mask is None or attention_mask.dim() == 2:
        visible = _visible(attention_mask, query, causal)
        if visible is not None:
            attention_mask = torch.zeros_like(visible, dtype=query.dtype).masked_fill(
                ~visible, torch.finfo(query.dtype).min
            )
    # each family has its own eager attention (they differ in the softmax's dtype), beside its attention class
    eager_attention_forward = sys.modules[type(module).__module__].eager_attention_forward
    return eager_attention_forward(module, query, key, value, attention_mask, **arguments)


for _causal in (False, True):
    for _name, _attention, _mask in (("sdpa", _dense_sdpa, sdpa_mask), ("eager", _dense_eager, eager_mask)):
        _ours = implementations(_causal)[_name]
        AttentionInterface.register(_ours, partial(_attention, causal=_causal))
        AttentionMaskInterface.register(_ours, _padding_mask_or(_mask, _causal))
