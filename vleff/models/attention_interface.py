"""The attention implementations "vleff" and "vleff_eager" in transformers' registries.

transformers builds a 4-D attention mask before the encoder runs; the packed encoder needs the 2-D padding
mask. So an accelerated model's config names one of these implementations: their mask function hands the
padding mask through, and their attention function is the model's former one (SDPA or eager), which serves
every call that does not run packed.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, eager_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing

# transformers' implementation -> the one that an accelerated model has instead
IMPLEMENTATIONS = {"sdpa": "vleff", "eager": "vleff_eager"}


def _is_padding_only(mask_function: Callable, mask: torch.Tensor | None, kv_length: int) -> bool:
    return mask_function is bidirectional_mask_function and (
        mask is None or (mask.dim() == 2 and mask.shape[1] == kv_length)
    )


def _padding_mask_or(dense_mask: Callable) -> Callable:
    def padding_mask(
        *,
        kv_length: int,
        mask_function: Callable,
        attention_mask: torch.Tensor | None = None,
        allow_is_bidirectional_skip: bool = False,
        use_vmap: bool = False,
        **arguments: Any,
    ) -> torch.Tensor | None:
        """The bool padding mask [batch, kv_length], None if all tokens are valid.

        Other masks are transformers' own: [batch, 1, q_length, kv_length].
        """
        plain = allow_is_bidirectional_skip and not use_vmap
        if plain and _is_padding_only(mask_function, attention_mask, kv_length):
            if attention_mask is None or (not is_tracing(attention_mask) and attention_mask.all()):
                return None
            return attention_mask
        return dense_mask(
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            use_vmap=use_vmap,
            **arguments,
        )

    return padding_mask


def _dense_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask[:, None, None, :].expand(-1, 1, query.shape[2], -1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)


def _dense_eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if attention_mask is not None and attention_mask.dim() == 2:
        visible = attention_mask[:, None, None, :]
        attention_mask = torch.zeros_like(visible, dtype=query.dtype).masked_fill(
            ~visible, torch.finfo(query.dtype).min
        )
    # each family has its own eager attention (they differ in the softmax's dtype), beside its attention class
    eager_attention_forward = sys.modules[type(module).__module__].eager_attention_forward
    return eager_attention_forward(module, query, key, value, attention_mask, **arguments)


AttentionInterface.register(IMPLEMENTATIONS["sdpa"], _dense_sdpa)
AttentionInterface.register(IMPLEMENTATIONS["eager"], _dense_eager)
AttentionMaskInterface.register(IMPLEMENTATIONS["sdpa"], _padding_mask_or(sdpa_mask))
AttentionMaskInterface.register(IMPLEMENTATIONS["eager"], _padding_mask_or(eager_mask))
