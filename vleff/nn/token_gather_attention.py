"""TokenGatherAttention: multi-head attention over ragged batches."""

import torch
from torch import Tensor, nn

from vleff.nn.ragged import RaggedBatch
from vleff.ops.token_gather_attention import token_gather_attention


class TokenGatherAttention(nn.Module):
    """Multi-head attention as in "Attention Is All You Need", section 3.2.2, within the samples of a batch.

        output(concat over heads h of attention_h(query(x), key(memory), value(memory)))

    memory is x itself for self attention. The computation between the projections is
    `vleff.ops.token_gather_attention`: nothing is spent on padding or on dropped heads.

    Attributes:
        query, key, value, output: the projections, `nn.Linear`.

    Args:
        embed_dim: width of the tokens; a multiple of `heads`, at most 256 times as large.
        heads: number of attention heads.
        memory_dim: width of the memory's tokens; `embed_dim` if None.
        bias: whether the projections have biases.
        dropout: probability with which an attention is dropped in training.
        causal: whether tokens see only keys up to their own position, counted from the ends of the sample and
            of its memory.

    Raises:
        ValueError: `embed_dim`, `heads` and `dropout` do not fit.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        *,
        memory_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or embed_dim % heads or not 1 <= embed_dim // heads <= 256:
            raise ValueError(f"embed_dim: expected 1 to 256 columns for each of heads = {heads}, got {embed_dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        memory_dim = embed_dim if memory_dim is None else memory_dim
        self.heads = heads
        self.dropout = dropout
        self.causal = causal
        self.query = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.key = nn.Linear(memory_dim, embed_dim, bias, device, dtype)
        self.value = nn.Linear(memory_dim, embed_dim, bias, device, dtype)
        self.output = nn.Linear(embed_dim, embed_dim, bias, device, dtype)

    def forward(
        self,
        tokens: RaggedBatch,
        memory: RaggedBatch | None = None,
        *,
        head_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        importance: bool = False,
    ) -> tuple[RaggedBatch, Tensor | None]:
        """Attends from every token to its sample's memory.

        Args:
            tokens: values [total_tokens, embed_dim].
            memory: values [total_memory, memory_dim], with as many samples as `tokens`; `tokens` if None.
            head_mask: bool [batch, heads], False where a head is dropped: it adds nothing and costs nothing.
            key_bias: float32 [total_memory], added to the logits of a key; -inf hides it.
            importance: whether to sum the attention that each key receives.

        Returns:
            a batch of values [total_tokens, embed_dim] at the positions of `tokens`, and
            importance float32 [total_memory, heads], not differentiable, None unless asked for.

        Raises:
            RuntimeError: as `vleff.ops.token_gather_attention`.
        """
        memory = tokens if memory is None else memory
        by_head = (self.heads, -1)
        context, _, received = token_gather_attention(
            self.query(tokens.values).unflatten(-1, by_head),
            self.key(memory.values).unflatten(-1, by_head),
            self.value(memory.values).unflatten(-1, by_head),
            tokens.offsets,
            memory.offsets,
            tokens.max_length,
            memory.max_length,
            head_mask=head_mask,
            key_bias=key_bias,
            causal=self.causal,
            dropout_p=self.dropout if self.training else 0.0,
            importance=importance,
        )
        attended = tokens.replace(self.output(context.flatten(1)))
        return attended, received if importance else None

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dropout={self.dropout}, causal={self.causal}"
