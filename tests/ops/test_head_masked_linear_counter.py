"""The multiply-adds that the kernels of head_masked_linear do, counted where tiles are multiplied."""

from typing import Any

import numpy as np
import pytest

dev: Any = pytest.importorskip("vleff._dev", reason="built with VLEFF_DEV=1, as `make test` does")
LEVELS = dev.isa_levels()
LENGTHS = [0, 37, 1, 250, 3, 0, 90]
OFFSETS = np.cumsum([0, *LENGTHS]).astype(np.int32)
SIZES = [(4, 64, 256), (3, 40, 100), (2, 33, 65), (5, 1, 7), (1, 300, 70)]  # heads, head_dim, width
KINDS = ["all", "half", "one of each", "none"]


def up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def make_mask(kind: str, heads: int) -> np.ndarray:
    mask = np.random.default_rng(1).random((len(LENGTHS), heads)) < {"all": 2, "half": 0.5}.get(kind, -1)
    if kind == "one of each":
        mask[:, heads - 1] = True
    return mask


def bits(array: np.ndarray, dtype: str) -> np.ndarray:
    return array if dtype == "float32" else (array.view(np.uint32) >> 16).astype(np.uint16)


def draw(rows: int, columns: int, dtype: str) -> np.ndarray:
    return bits(np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32), dtype)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_only_kept_heads_are_multiplied(isa: str, dtype: str, kind: str, threads: int) -> None:
    lanes, per_word = dev.head_masked_tile(dtype, isa)
    options: dict[str, Any] = {"dtype": dtype, "isa": isa, "threads": threads}
    for heads, head_dim, width in SIZES:
        mask, tokens, parts = make_mask(kind, heads), OFFSETS[-1], 3
        kept = int((np.array(LENGTHS)[:, None] * mask).sum())  # (token, head) pairs
        rows, of_heads = draw(tokens, width, dtype), draw(tokens, parts * heads * head_dim, dtype)

        weight = draw(parts * heads * head_dim, width, dtype)
        _, done = dev.head_masked_project(rows, weight, OFFSETS, mask, parts=parts, **options)
        assert done == kept * up(parts * head_dim, lanes) * up(width, per_word)

        one_part = of_heads[:, : heads * head_dim]
        _, done = dev.head_masked_reduce(one_part, draw(width, heads * head_dim, dtype), OFFSETS, mask, **options)
        assert done == kept * up(head_dim, per_word) * up(width, lanes)

        *_, done = dev.head_masked_grad_weight(of_heads, rows, OFFSETS, mask, parts=parts, **options)
        assert kept * parts * head_dim * up(width, lanes) <= done
        odd_ends = per_word - 1  # at most one word more for each stretch of tokens that keep a head
        assert done <= (kept + odd_ends * mask.size) * parts * head_dim * up(width, lanes)


@pytest.mark.parametrize("isa", LEVELS)
def test_results_equal_the_formulas(isa: str) -> None:
    """Without torch, against float64."""
    heads, head_dim, width, parts = 3, 40, 100, 2
    mask, tokens = make_mask("half", heads), OFFSETS[-1]
    kept = np.repeat(mask, LENGTHS, 0)[:, None, :, None]
    rows, of_heads = draw(tokens, width, "float32"), draw(tokens, parts * heads * head_dim, "float32")
    weight = draw(parts * heads * head_dim, width, "float32")
    by_head = of_heads.astype(float).reshape(tokens, parts, heads, head_dim) * kept

    out, _ = dev.head_masked_project(rows, weight, OFFSETS, mask, parts=parts, isa=isa, threads=2)
    expected = (rows.astype(float) @ weight.T.astype(float)).reshape(by_head.shape) * kept
    np.testing.assert_allclose(out, expected.reshape(tokens, -1), atol=1e-4)

    grad, bias, _ = dev.head_masked_grad_weight(of_heads, rows, OFFSETS, mask, parts=parts, isa=isa, threads=2)
    np.testing.assert_allclose(grad, by_head.reshape(tokens, -1).T @ rows, atol=1e-3)
    np.testing.assert_allclose(bias, by_head.reshape(tokens, -1).sum(0), atol=1e-3)

    one_part, weight = of_heads[:, : heads * head_dim], draw(width, heads * head_dim, "float32")
    out, _ = dev.head_masked_reduce(one_part, weight, OFFSETS, mask, isa=isa, threads=2)
    np.testing.assert_allclose(out, by_head[:, 0].reshape(tokens, -1) @ weight.T, atol=1e-4)


def test_bad_input_is_named() -> None:
    rows, weight, mask = draw(OFFSETS[-1], 8, "float32"), draw(12, 8, "float32"), make_mask("half", 3)
    for change, message in (
        ({"head_mask": mask[1:]}, "argument 'head_mask': expected bool"),
        ({"head_mask": make_mask("half", 5)}, "argument 'head_mask': expected heads and parts that divide 12"),
        ({"offsets": OFFSETS * 2}, "argument 'offsets'"),
        ({"index": np.array([0, 999], np.int32)}, "argument 'index'"),
        ({"threads": 0}, "argument 'threads'"),
        ({"parts": 0}, "argument 'parts'"),
    ):
        arguments: dict[str, Any] = {"input": rows, "weight": weight, "offsets": OFFSETS, "head_mask": mask}
        with pytest.raises(RuntimeError, match=message):
            dev.head_masked_project(**arguments | change)
