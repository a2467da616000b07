"""TokenGatherAttention against torch.nn.MultiheadAttention with the same weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vleff.nn import RaggedBatch, TokenGatherAttention

MASK = torch.arange(9) < torch.tensor([9, 1, 4, 0])[:, None]
MEMORY_MASK = torch.arange(7) < torch.tensor([2, 7, 5, 3])[:, None]


def pair(memory_dim: int | None = None, **options: object) -> tuple[TokenGatherAttention, nn.MultiheadAttention]:
    ours = TokenGatherAttention(48, 4, memory_dim=memory_dim, **options)
    torchs = nn.MultiheadAttention(48, 4, batch_first=True, kdim=memory_dim or 48, vdim=memory_dim or 48, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.2)
        if memory_dim is None:
            torchs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        else:
            for name in ("query", "key", "value"):
                getattr(torchs, f"{name[0]}_proj_weight").copy_(getattr(ours, name).weight)
        torchs.out_proj.weight.copy_(ours.output.weight)
        if ours.query.bias is not None:
            torchs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
            torchs.out_proj.bias.copy_(ours.output.bias)
    return ours, torchs


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention(cpu_isa: str, bias: bool) -> None:
    ours, torchs = pair(bias=bias)
    padded = torch.randn(4, 9, 48, requires_grad=True)
    attended, importance = ours(RaggedBatch.pack(padded, MASK))
    assert importance is None
    actual = attended.unpack()[:3]
    expected, _ = torchs(padded[:3], padded[:3], padded[:3], key_padding_mask=~MASK[:3])
    expected = expected.masked_fill(~MASK[:3, :, None], 0)
    torch.testing.assert_close(actual, expected)
    grad_output = torch.randn_like(actual)
    gradients = [torch.autograd.grad(result, padded, grad_output)[0] for result in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_cross_attention_and_importance(cpu_isa: str) -> None:
    ours, torchs = pair(memory_dim=20)
    padded, memory = torch.randn(4, 9, 48), torch.randn(4, 7, 20)
    tokens, remembered = RaggedBatch.pack(padded, MASK), RaggedBatch.pack(memory, MEMORY_MASK)
    attended, importance = ours(tokens, remembered, importance=True)
    expected, attention = torchs(padded, memory, memory, key_padding_mask=~MEMORY_MASK, average_attn_weights=False)
    torch.testing.assert_close(attended.unpack(), expected.masked_fill(~MASK[:, :, None], 0))
    received = (attention * MASK[:, None, :, None]).sum(2).transpose(1, 2)
    torch.testing.assert_close(importance, received[MEMORY_MASK])


def test_causal() -> None:
    ours, torchs = pair()
    ours.causal = True
    padded = torch.randn(2, 9, 48)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    torch.testing.assert_close(
        ours(RaggedBatch.pack(padded))[0].unpack(), torchs(padded, padded, padded, attn_mask=hidden)[0]
    )


def test_hidden_keys_are_as_if_dropped() -> None:
    ours, _ = pair()
    tokens, memory = RaggedBatch.pack(torch.randn(4, 9, 48), MASK), RaggedBatch.pack(torch.randn(4, 7, 48), MEMORY_MASK)
    keep = torch.rand(len(memory.values)) < 0.6
    hidden, _ = ours(tokens, memory, key_bias=torch.zeros(len(keep)).masked_fill(~keep, -torch.inf))
    dropped, _ = ours(tokens, memory.compact(keep))
    torch.testing.assert_close(hidden.values, dropped.values)


def test_dropped_heads_add_nothing() -> None:
    ours, _ = pair()
    tokens = RaggedBatch.pack(torch.randn(4, 9, 48), MASK)
    head_mask = torch.rand(4, 4) < 0.5
    actual = ours(tokens, head_mask=head_mask)[0].values
    without = copy.deepcopy(ours)
    for sample in range(4):
        with torch.no_grad():
            columns = head_mask[sample].repeat_interleave(12)
            without.output.weight.copy_(ours.output.weight * columns)
        rows = slice(*tokens.offsets[sample : sample + 2].tolist())
        torch.testing.assert_close(actual[rows], without(tokens)[0].values[rows])


def test_dropout_only_in_training() -> None:
    ours = TokenGatherAttention(48, 4, dropout=0.5)
    tokens = RaggedBatch.pack(torch.randn(4, 9, 48), MASK)
    assert not torch.equal(ours(tokens)[0].values, ours(tokens)[0].values)
    ours.eval()
    assert torch.equal(ours(tokens)[0].values, ours(tokens)[0].values)


def test_compiles_once_for_all_token_counts() -> None:
    torch._dynamo.reset()
    ours, _ = pair()

    def function(padded: Tensor, mask: Tensor) -> Tensor:
        return ours(RaggedBatch.pack(padded, mask))[0].unpack()

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for number, (batch, length) in enumerate([(2, 5), (3, 7), (3, 8)]):
        padded, mask = torch.randn(batch, length, 48), torch.rand(batch, length) < 0.6
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            actual = compiled(padded, mask)
        torch.testing.assert_close(actual, function(padded, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    ours = TokenGatherAttention(48, 4, dtype=dtype)
    padded = torch.randn(4, 9, 48).to(dtype)
    actual = ours(RaggedBatch.pack(padded, MASK))[0].unpack()
    expected = ours.float()(RaggedBatch.pack(padded.float(), MASK))[0].unpack()
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"embed_dim": 50, "heads": 4}, "embed_dim: expected .* heads = 4, got 50"),
        ({"embed_dim": 48, "heads": 0}, "heads = 0"),
        ({"embed_dim": 1024, "heads": 2}, "embed_dim: expected 1 to 256 columns"),
        ({"embed_dim": 0, "heads": 2}, "embed_dim: expected 1 to 256 columns"),
        ({"embed_dim": 48, "heads": 4, "dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenGatherAttention(**arguments)
