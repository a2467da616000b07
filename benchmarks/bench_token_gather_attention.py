"""token_gather_attention against scaled_dot_product_attention on the padded batch: 12 heads of 64.

On the GPU in bfloat16 also against torch's attention of samples of any lengths.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vleff.ops.token_gather_attention import token_gather_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # this torch has none
    varlen_attn = None

HEADS, HEAD_DIM = 12, 64
SCALE = HEAD_DIM**-0.5
DROPOUT = 0.1
LENGTHS = {
    "8 x 269 tokens": [269] * 8,
    "32 x 64-512 tokens": torch.randint(64, 513, (32,), generator=torch.Generator().manual_seed(0)).tolist(),
    "64 x 40 tokens": [40] * 64,
}
# speedup to reach: dtype -> lengths -> target
FORWARD_TARGETS = {
    torch.float32: {"8 x 269 tokens": 1.35, "32 x 64-512 tokens": 3.4, "64 x 40 tokens": 2.5},
    torch.bfloat16: {"8 x 269 tokens": 2.2, "32 x 64-512 tokens": 5.0, "64 x 40 tokens": 2.5},
}
TRAINING_TARGETS = {
    torch.float32: {"8 x 269 tokens": 1.2, "32 x 64-512 tokens": 3.0},
    torch.bfloat16: {"8 x 269 tokens": 1.6, "32 x 64-512 tokens": 3.0},
}
DROPOUT_TARGET = 1.8


@dataclass
class Case:
    """The same queries, keys, values and output gradients for both sides.

    Attributes:
        lengths: tokens of each sample.
        packed: four tensors [total, heads, head_dim]: q, k, v and the gradient of the output.
        padded: the same as [batch, heads, longest, head_dim], strided as transformers hands them to SDPA.
        mask: bool [batch, 1, longest, longest] as transformers makes it; None if nothing is padded.
        offsets: int32 [batch + 1].
    """

    lengths: list[int]
    packed: list[Tensor]
    padded: list[Tensor]
    mask: Tensor | None
    offsets: Tensor

    def ours(self, dropout: float = 0.0) -> Tensor:
        q, k, v, _ = self.packed
        seed = torch.zeros(1, dtype=torch.int64, device=q.device) if dropout else None
        longest = max(self.lengths)
        offsets = self.offsets
        return token_gather_attention(
            q, k, v, offsets, offsets, longest, longest, scale=SCALE, dropout_p=dropout, seed=seed
        )[0]

    def dense(self, dropout: float = 0.0) -> Tensor:
        q, k, v, _ = self.padded
        return scaled_dot_product_attention(q, k, v, attn_mask=self.mask, dropout_p=dropout, scale=SCALE)

    def varlen(self) -> Tensor:
        q, k, v, _ = self.packed
        longest = max(self.lengths)
        return varlen_attn(q, k, v, self.offsets, self.offsets, longest, longest, scale=SCALE)

    def has_varlen(self) -> bool:
        """Whether torch's attention of samples of any lengths takes this case."""
        return varlen_attn is not None and self.packed[0].is_cuda and self.packed[0].dtype == torch.bfloat16

    def flops(self) -> int:
        """Of the forward pass: two products, two operations a multiply-add."""
        return sum(4 * length * length * HEADS * HEAD_DIM for length in self.lengths)


@pytest.fixture(params=LENGTHS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str, dtype: torch.dtype, device: torch.device) -> Case:
    lengths = LENGTHS[name]
    torch.manual_seed(0)
    packed = [torch.randn(sum(lengths), HEADS, HEAD_DIM).to(device, dtype) for _ in range(4)]
    padded = [torch.nn.utils.rnn.pad_sequence(t.split(lengths), batch_first=True).transpose(1, 2) for t in packed]
    longest = max(lengths)
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = None if bool(valid.all()) else valid[:, None, None, :].expand(-1, 1, longest, -1)
    mask = None if mask is None else mask.to(device)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Case(lengths, packed, padded, mask, offsets)


@pytest.mark.benchmark(group="forward")
def test_forward(interleaved: Callable[..., None], case: Case, name: str, dtype: torch.dtype) -> None:
    _check(case, gradients=False)
    targets = {"SDPA": FORWARD_TARGETS[dtype].get(name)}
    baselines = {"SDPA": case.dense} | ({"varlen_attn": case.varlen} if case.has_varlen() else {})
    with torch.inference_mode():
        interleaved(case.ours, baselines, targets, flops=case.flops())


@pytest.mark.benchmark(group="forward and backward")
def test_training(interleaved: Callable[..., None], case: Case, name: str, dtype: torch.dtype) -> None:
    _requiregradients(case)
    _check(case, gradients=True)
    targets = {"SDPA": TRAINING_TARGETS[dtype].get(name)}
    # the backward pass has five products, two of which repeat the forward pass's kind
    baselines = {"SDPA": lambda: _train_dense(case)}
    if case.has_varlen():
        baselines["varlen_attn"] = lambda: torch.autograd.grad(case.varlen(), case.packed[:3], case.packed[3])
    interleaved(lambda: _train_ours(case), baselines, targets, flops=case.flops() * 7 // 2)


@pytest.mark.benchmark(group="forward and backward with dropout 0.1")
def test_training_with_dropout(interleaved: Callable[..., None], case: Case) -> None:
    _requiregradients(case)
    baselines = {"SDPA": lambda: _train_dense(case, DROPOUT)}
    interleaved(lambda: _train_ours(case, DROPOUT), baselines, {"SDPA": DROPOUT_TARGET}, flops=case.flops() * 7 // 2)


def _requiregradients(case: Case) -> None:
    for tensors in (case.packed, case.padded):
        tensors[:3] = [tensor.requires_grad_() for tensor in tensors[:3]]


def _train_ours(case: Case, dropout: float = 0.0) -> tuple[Tensor, ...]:
    return torch.autograd.grad(case.ours(dropout), case.packed[:3], case.packed[3])


def _train_dense(case: Case, dropout: float = 0.0) -> tuple[Tensor, ...]:
    return torch.autograd.grad(case.dense(dropout), case.padded[:3], case.padded[3])


def _check(case: Case, gradients: bool) -> None:
    """Compares both sides with fp64: our error is at most twice that of SDPA."""
    exact = Case(
        case.lengths,
        case.packed,
        [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in case.padded],
        case.mask,
        case.offsets,
    )
    pairs = [(exact.dense(), case.dense(), case.ours())]
    if gradients:
        pairs += zip(_train_dense(exact), _train_dense(case), _train_ours(case), strict=True)
    for reference, dense, ours in pairs:
        reference, dense = _pack(reference, case.lengths), _pack(dense, case.lengths)
        dense_error = (dense.double() - reference).abs().max()
        error = (ours.double() - reference).abs().max()
        assert error <= 2 * dense_error, f"error {error:.1e} against fp64, SDPA has {dense_error:.1e}"


def _pack(padded: Tensor, lengths: list[int]) -> Tensor:
    rows = padded.detach().transpose(1, 2)
    return torch.cat([sample[:length] for sample, length in zip(rows, lengths, strict=True)])
