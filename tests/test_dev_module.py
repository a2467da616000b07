"""The kernel layer over NumPy arrays, without torch, against float64 formulas."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

dev: Any = pytest.importorskip("vleff._dev", reason="built with VLEFF_DEV=1, as `make test` does")
LEVELS = dev.isa_levels()
Q_OFFSETS, K_OFFSETS = np.array([0, 3, 3, 20], np.int32), np.array([0, 7, 9, 42], np.int32)
HEADS, HEAD_DIM = 2, 40


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, HEADS, HEAD_DIM)).astype(np.float32)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """out, lse and importance in float64."""
    out = np.zeros(q.shape)
    lse = np.zeros(q.shape[:2])
    importance = np.zeros(k.shape[:2])
    for sample in range(len(Q_OFFSETS) - 1):
        a = slice(Q_OFFSETS[sample], Q_OFFSETS[sample + 1])
        b = slice(K_OFFSETS[sample], K_OFFSETS[sample + 1])
        logits = scale * np.einsum("qhd,khd->hqk", q[a].astype(float), k[b].astype(float))
        weights = np.exp(logits)
        sums = weights.sum(-1, keepdims=True)
        out[a] = np.einsum("hqk,khd->qhd", weights / sums, v[b].astype(float))
        lse[a] = np.log(sums[..., 0]).T
        importance[b] = (weights / sums).sum(1).T
    return out, lse, importance


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_attention_equals_the_formula(isa: str, threads: int) -> None:
    q, k, v = rows(20), rows(42), rows(43)[:42]
    results = dev.token_gather_attention_forward(q, k, v, Q_OFFSETS, K_OFFSETS, scale=0.2, isa=isa, threads=threads)
    for found, expected in zip(results, attention(q, k, v, 0.2), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("isa", LEVELS)
def test_attention_gradients_equal_finite_differences(isa: str) -> None:
    q, k, v = rows(20), rows(42), rows(43)[:42]
    grad_out = rows(21)[:20]
    out, lse, _ = dev.token_gather_attention_forward(q, k, v, Q_OFFSETS, K_OFFSETS, scale=0.2, isa=isa)
    grads = dev.token_gather_attention_backward(grad_out, out, lse, q, k, v, Q_OFFSETS, K_OFFSETS, scale=0.2, isa=isa)
    step = 1e-6
    for number, name in enumerate("qkv"):
        inputs = [x.astype(float) for x in (q, k, v)]
        direction = np.random.default_rng(7).standard_normal(inputs[number].shape)
        losses = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[number] = inputs[number] + sign * step * direction
            losses.append((attention(*moved, 0.2)[0] * grad_out).sum())
        expected = (losses[0] - losses[1]) / (2 * step)
        assert (grads[number] * direction).sum() == pytest.approx(expected, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_bits(isa: str, dtype: str) -> None:
    """uint16 arrays hold the bits; a single key makes the output its value, exactly."""
    offsets = np.array([0, 1], np.int32)
    numbers = np.linspace(-2, 2, HEADS * HEAD_DIM).astype(np.float32).reshape(1, HEADS, HEAD_DIM)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    if dtype == "float16":
        bits = numbers.astype(np.float16).view(np.uint16)
    out, _, importance = dev.token_gather_attention_forward(bits, bits, bits, offsets, offsets, dtype=dtype, isa=isa)
    np.testing.assert_array_equal(out, bits)
    np.testing.assert_array_equal(importance, np.ones((1, HEADS), np.float32))


@pytest.mark.parametrize("isa", LEVELS)
def test_layer_norm_equals_the_formula(isa: str) -> None:
    random = np.random.default_rng(0)
    x, residual = (random.standard_normal((5, 17)).astype(np.float32) for _ in range(2))
    weight, bias = (random.standard_normal(17).astype(np.float32) for _ in range(2))
    normalized, total = dev.residual_layer_norm(x, residual, weight, bias, 1e-5, isa=isa, threads=2)
    wanted = x.astype(float) + residual
    np.testing.assert_allclose(total, wanted, rtol=1e-6, atol=1e-6)
    wanted = (wanted - wanted.mean(1, keepdims=True)) / np.sqrt(wanted.var(1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(normalized, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"isa": "sse9"}, "argument 'isa': expected a level of this processor"),
        ({"dtype": "int8"}, "argument 'dtype': expected float32, bfloat16 or float16, got 'int8'"),
        ({"dtype": "bfloat16"}, "argument 'q': expected uint16"),
        ({"threads": 0}, "argument 'threads': expected at least 1, got 0"),
        ({"k_index": np.array([0, 99], np.int32)}, "argument 'k_index': expected row numbers"),
        ({"key_bias": np.full(42, np.nan, np.float32)}, "argument 'key_bias': expected finite numbers or -inf"),
        ({"head_mask": np.ones((2, 2), bool)}, r"argument 'head_mask': expected bool \[3, 2\], got bool \[2, 2\]"),
        ({"dropout_p": 1.5}, "argument 'dropout_p'"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        dev.token_gather_attention_forward(rows(20), rows(42), rows(42), Q_OFFSETS, K_OFFSETS, **change)


def test_module_needs_no_torch() -> None:
    script = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_dev", {dev.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.isa_levels()[0] == "baseline" and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
