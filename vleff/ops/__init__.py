"""The ops as functions. Each file holds one: its documented face, its reference in plain torch, its rules for torch.

Importing this package loads the compiled library.
"""

from vleff.ops.token_gather_attention import (
    token_gather_attention,
    token_gather_attention_flops,
    token_gather_attention_reference,
)

__all__ = [
    "token_gather_attention",
    "token_gather_attention_flops",
    "token_gather_attention_reference",
]
