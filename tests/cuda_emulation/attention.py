"""token_gather_attention on the emulated device, in every schedule, in a process of its own."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_kernels import MOST_SHARED_BYTES
from torch import Tensor

from .building import EmulatedLibrary, run_worker

Result = tuple[Tensor, Tensor, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of vleff::DataType


class EmulationError(Exception):
    """The emulator has found a mistake of a kernel, or the kernel was not started."""


def bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def storage_of(tensor: Tensor) -> np.ndarray:
    """The tensor's memory up to its last element: what lies behind that must not be read."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    length = tensor.storage_offset() + last + 1 if tensor.numel() else 0
    return bytes_of(tensor.as_strided((length,), (1,), 0))


def emulated_attention(
    build: EmulatedLibrary,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    head_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    shared_limit: int = MOST_SHARED_BYTES,
) -> tuple[list[Result], list[dict[str, int]]]:
    """Results and statistics of each schedule; arguments as of `vleff.ops.token_gather_attention`.

    Raises:
        EmulationError: with what the emulator reports.
    """
    optional = {"q_index": q_index, "k_index": k_index, "head_mask": head_mask, "key_bias": key_bias, "seed": seed}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    total_q = q.shape[0] if q_index is None else q_index.numel()
    total_k = k.shape[0] if k_index is None else k_index.numel()
    heads, head_dim = q.shape[1:]
    shapes = {"out": (total_q, heads, head_dim), "lse": (total_q, heads), "importance": (total_k, heads)}
    dtypes = {"out": q.dtype, "lse": torch.float32, "importance": torch.float32}
    options = {
        "shared_limit": shared_limit,
        "type": DTYPES.index(q.dtype),
        "batch": q_offsets.numel() - 1,
        "heads": heads,
        "head_dim": head_dim,
        "scale": head_dim**-0.5 if scale is None else scale,
        "causal": causal,
        "dropout_p": dropout_p,
        "first": {name: tensor.storage_offset() for name, tensor in (("q", q), ("k", k), ("v", v))},
        "strides": {name: tensor.stride()[:2] for name, tensor in (("q", q), ("k", k), ("v", v))},
        "rows": {"q": (q.shape[0], total_q, max_q), "k": (k.shape[0], total_k, max_k)},
        "index_is_int64": {name[0]: t.dtype == torch.int64 for name, t in given.items() if name.endswith("_index")},
        "result_bytes": {name: int(np.prod(shape)) * dtypes[name].itemsize for name, shape in shapes.items()},
    }
    inputs = {"q": storage_of(q), "k": storage_of(k), "v": storage_of(v)}
    inputs |= {"q_offsets": bytes_of(q_offsets), "k_offsets": bytes_of(k_offsets)}
    inputs |= {name: bytes_of(tensor) for name, tensor in given.items()}
    with tempfile.TemporaryDirectory() as folder:
        inputs_file, results_file = Path(folder, "inputs.npz"), Path(folder, "results.npz")
        np.savez(inputs_file, options=json.dumps(options), **inputs)
        done = run_worker("attention_worker.py", build.library, build.ptx, inputs_file, results_file)
        if done.returncode:
            raise EmulationError(done.stderr)
        loaded: dict[str, Any] = dict(np.load(results_file))
    statistics = json.loads(loaded["statistics"].item())

    def result(name: str, schedule: int) -> Tensor:
        target = torch.empty(shapes[name], dtype=dtypes[name])
        bytes_of(target)[:] = loaded[f"{name} {schedule}"]
        return target

    return [tuple(result(name, i) for name in shapes) for i in range(len(statistics))], statistics
