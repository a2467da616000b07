"""Writes docs/roofline.md: the least time that each CUDA kernel could take, by a model and not by measurement.

    python benchmarks/roofline.py

A kernel takes at least as long as its operations at the peak of the tensor cores, and at least as long as the bytes
that it must move at the peak of the memory. Both are counted from sizes; nothing runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vleff.ops import (
    attention_distillation_flops,
    copy_attention_flops,
    head_masked_linear_flops,
    token_gather_attention_flops,
)

PAGE = Path(__file__).parents[1] / "docs" / "roofline.md"

WIDTH, HEADS, HEAD_DIM = 768, 12, 64
SAMPLES, TEXT, IMAGE = 32, 40, 240
SOURCE_WORDS, WORDS, DECODER = 200, 30_000, 300
ELEMENTS = {"bfloat16": 2, "float32": 4}
FLOAT32_PRODUCTS = 3  # of tf32, for one of float32
COLUMN_BYTES = 1  # of an element's place in a sparse structure


@dataclass(frozen=True)
class Device:
    """Peaks from NVIDIA's data sheets of the SXM modules with 80 GB, without structured sparsity.

    Attributes:
        operations: a second, by what the tensor cores multiply.
        bandwidth: bytes a second.
    """

    name: str
    operations: dict[str, float]
    bandwidth: float


DEVICES = (
    Device("A100", {"bfloat16": 312e12, "float32": 156e12 / FLOAT32_PRODUCTS}, 2.039e12),
    Device("H100", {"bfloat16": 989e12, "float32": 495e12 / FLOAT32_PRODUCTS}, 3.35e12),
)


@dataclass(frozen=True)
class Work:
    """What a call must do at least: operations, and bytes read or written once."""

    call: str
    operations: float
    bytes: float

    def seconds(self, device: Device, dtype: str) -> tuple[float, str]:
        """The least time, and what it is bound by."""
        computing, moving = self.operations / device.operations[dtype], self.bytes / device.bandwidth
        return max(computing, moving), "products" if computing > moving else "memory"


def works(element: int) -> Iterator[Work]:
    """Calls of the sizes of ViLT-base, METER and PairToSequence.

    Args:
        element: bytes of one.
    """
    tokens = SAMPLES * (TEXT + IMAGE)
    lengths = [TEXT + IMAGE] * SAMPLES
    states = tokens * WIDTH * element
    offsets = torch.arange(SAMPLES + 1) * (TEXT + IMAGE)
    half = (torch.arange(HEADS) % 2 == 0).expand(SAMPLES, HEADS)
    flops, statistics = token_gather_attention_flops(lengths, lengths, HEADS, HEAD_DIM), tokens * HEADS * 4
    name = f"{SAMPLES} x {TEXT + IMAGE} tokens, {HEADS} heads"
    yield Work(f"token_gather_attention, {name}", flops, 4 * states + statistics)
    yield Work("… backward", 2.5 * flops, 8 * states + 2 * statistics)
    halved = token_gather_attention_flops(lengths, lengths, HEADS, HEAD_DIM, half)
    yield Work("… half of the heads", halved, 2.5 * states + statistics)
    project = head_masked_linear_flops(3 * WIDTH, WIDTH, offsets, half, tokens)
    yield Work("head_masked_project to q, k, v, half of the heads", project, 4 * states + 3 * WIDTH**2 * element)
    reduced = head_masked_linear_flops(WIDTH, WIDTH, offsets, half, tokens)
    yield Work("head_masked_reduce, half of the heads", reduced, 1.5 * states + WIDTH**2 * element)
    for rows in (16, tokens):
        size = 4 * WIDTH * WIDTH
        moved = 5 * rows * WIDTH * element
        yield Work(f"dense linear, {WIDTH} to {4 * WIDTH}, {rows:,} tokens", 2 * rows * size, moved + size * element)
        sparse = 0.1 * size * (element + COLUMN_BYTES)
        yield Work(f"masked_linear, 90 % zeros, {rows:,} tokens", 2 * rows * size, moved + sparse)
    pairs = [TEXT] * SAMPLES, [IMAGE] * SAMPLES
    flops = attention_distillation_flops(*pairs, HEADS, HEAD_DIM, HEAD_DIM)
    moved = 2 * states + SAMPLES * TEXT * HEADS * 4
    yield Work(f"attention_distillation, {SAMPLES} x ({TEXT} x {IMAGE}) tokens", flops, moved)
    targets = SAMPLES * 16
    flops, moved = 2 * targets * DECODER * WORDS, (targets + WORDS) * DECODER * element
    yield Work(f"vocabulary_log_probs, {targets} targets, {WORDS:,} words", flops, moved)
    memory = [SOURCE_WORDS - 20] * SAMPLES
    flops = copy_attention_flops([16] * SAMPLES, [20] * SAMPLES, memory, DECODER)
    moved = (targets + SAMPLES * SOURCE_WORDS) * DECODER * element
    yield Work(f"copy_attention, {targets} targets, {SAMPLES} x {SOURCE_WORDS} source words", flops, moved)
    yield Work(f"trim_tokens, {tokens:,} tokens", 2 * tokens * WIDTH * WIDTH // 8, states)


INTRODUCTION = """# Roofline of the CUDA kernels

Made by `python benchmarks/roofline.py`; do not edit by hand. **A model, not a measurement**: no kernel has run on a
GPU. A call takes at least as long as its multiply-adds at the peak of the tensor cores, and at least as long as what it
must read and write, once, at the peak of the memory. Peaks are those of NVIDIA's data sheets for the SXM modules with
80 GB:

{peaks}

float32 operands are multiplied three times as tf32. Real kernels reach a part of either peak, and launching one takes
some microseconds that are not counted here.

What follows from it: head-masked products gain what is dropped wherever they are bound by products. `masked_linear`
multiplies zeros, too, and can gain only where reading the weight is what takes the time, at few tokens; vleff's layers
therefore stay dense on CUDA.
"""


def page() -> str:
    """The whole page, in Markdown."""
    peaks = "\n".join(
        f"- {device.name}: {device.operations['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{device.operations['float32'] * FLOAT32_PRODUCTS / 1e12:.0f} in tf32, {device.bandwidth / 1e12:.2f} TB/s"
        for device in DEVICES
    )
    lines = [INTRODUCTION.format(peaks=peaks)]
    for dtype, element in ELEMENTS.items():
        lines += [f"\n## {dtype}\n", "| call | GFLOP | MB | " + " | ".join(f"{d.name} µs | bound by" for d in DEVICES)]
        lines[-1] += " |\n" + "|---" * (3 + 2 * len(DEVICES)) + "|"
        for work in works(element):
            row = [work.call, f"{work.operations / 1e9:.2f}", f"{work.bytes / 1e6:.2f}"]
            for device in DEVICES:
                seconds, bound = work.seconds(device, dtype)
                row += [f"{seconds * 1e6:.1f}", bound]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PAGE.parents[1])}")
