"""attention_distillation in both directions against the plain formula on the padded batch: 12 heads of 64, 64 pairs.

As a program it prints the most memory, in megabytes, that one training step takes above its inputs:

    python -m benchmarks.bench_attention_distillation float32|bfloat16 plain|vleff
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from benchmarks.peak_memory import peak_above_start
from vleff.nn import CrossModalAttentionDistillationLoss
from vleff.ops import attention_distillation_flops

BATCH, HEADS, HEAD_DIM = 64, 12, 64
TEXT, IMAGE = 40, 240
SPEED_TARGET, MEMORY_TARGET = 2.0, 0.2
MODALITIES = {"text": TEXT, "image": IMAGE}


class Case:
    """The same queries and keys of a teacher and a student for both sides."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.operands = {
            f"{side}_{modality}": tuple(torch.randn(BATCH * length, HEADS, HEAD_DIM).to(dtype) for _ in range(2))
            for side in ("teacher", "student")
            for modality, length in MODALITIES.items()
        }
        self.leaves = [x.requires_grad_() for m in MODALITIES for x in self.operands[f"student_{m}"]]
        self.offsets = {
            f"{modality}_offsets": torch.arange(BATCH + 1, dtype=torch.int32) * length
            for modality, length in MODALITIES.items()
        }
        self.loss = CrossModalAttentionDistillationLoss()

    def ours(self) -> list[Tensor]:
        return self.step(self.loss(**self.operands, **self.offsets, max_text=TEXT, max_image=IMAGE))

    def plain(self) -> list[Tensor]:
        return self.step(self.formula("text", "image") + self.formula("image", "text"))

    def step(self, loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, self.leaves)]

    def formula(self, of: str, to: str) -> Tensor:
        with torch.no_grad():
            teacher = self.logits("teacher", of, to).softmax(-1)
        student = self.logits("student", of, to).log_softmax(-1)
        return kl_div(student, teacher, reduction="none").sum(-1).mean()

    def logits(self, side: str, of: str, to: str) -> Tensor:
        queries, keys = (
            self.operands[f"{side}_{modality}"][i].view(BATCH, -1, HEADS, HEAD_DIM).transpose(1, 2)
            for i, modality in enumerate((of, to))
        )
        return queries @ keys.transpose(-1, -2) * HEAD_DIM**-0.5

    def exact(self) -> list[Tensor]:
        exact = Case(torch.float64)
        for name, operands in self.operands.items():
            for target, source in zip(exact.operands[name], operands, strict=True):
                target.data.copy_(source.data)
        return exact.plain()


@pytest.mark.benchmark(group="attention_distillation, forward and backward, 64 x (40 x 240 tokens), 12 heads of 64")
def test_training(interleaved: Callable[..., None], dtype: torch.dtype, device: torch.device) -> None:
    with device:
        case = Case(dtype)
        expected = case.exact()
    for ours, plain, exact in zip(case.ours(), case.plain(), expected, strict=True):
        error, plain_error = ((x.double() - exact).abs().max() for x in (ours, plain))
        allowed = 2 * plain_error + torch.finfo(torch.float32).eps * exact.abs().max()
        assert error <= allowed, f"outputs differ: error {error:.1e} against fp64, the formula has {plain_error:.1e}"
    lengths = [TEXT] * BATCH, [IMAGE] * BATCH
    # the backward pass makes the products of both sides again and has two more of the student's
    flops = 3 * 2 * attention_distillation_flops(*lengths, HEADS, HEAD_DIM, HEAD_DIM)
    interleaved(case.ours, {"plain formula": case.plain}, {"plain formula": SPEED_TARGET}, budget=20, flops=flops)


@pytest.mark.benchmark(group="Memory of attention_distillation above its inputs, forward and backward, the same case")
def test_peak_memory(benchmark, dtype: torch.dtype) -> None:
    def measure(side: str) -> dict[str, float]:
        module = ["-m", "benchmarks.bench_attention_distillation"]
        command = [sys.executable, *module, str(dtype).removeprefix("torch."), side]
        root = Path(__file__).parents[1]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)

    plain = measure("plain")
    ours = benchmark.pedantic(lambda: measure("vleff"))
    ratio = ours["peak"] / plain["peak"]
    benchmark.extra_info["peak_memory"] = {
        "eager": plain,
        "vleff": ours,
        "ratio": ratio,
        "ratio_above_start": ratio,
        "target": MEMORY_TARGET,
    }


if __name__ == "__main__":
    made = Case(getattr(torch, sys.argv[1]))
    print(json.dumps({"peak": peak_above_start(made.ours if sys.argv[2] == "vleff" else made.plain)}))
