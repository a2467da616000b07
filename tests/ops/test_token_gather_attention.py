"""Results of token_gather_attention against its reference in float64, at every instruction-set level."""

from functools import cache

import pytest
import torch
from attention_cases import (
    DTYPES,
    FEATURE_LENGTHS,
    FEATURES,
    NOTHING,
    SHAPES,
    assert_close,
    assert_same_bits,
    assert_within_twice_plain,
    error,
    exact,
    make_inputs,
    offsets_of,
    rounding,
    sdpa,
)

from vleff.ops import token_gather_attention, token_gather_attention_reference
from vleff.ops.dropout import dropout_keep, round_to_float32

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DRAWS = 4
WITH_KEYS = [name for name in SHAPES if name != "empty samples"]


@cache
def draws_and_yardsticks(name: str, dtype: torch.dtype) -> tuple:
    """Inputs, results of the reference in float64 and in dtype, and outputs of plain torch."""
    draws = [make_inputs(**SHAPES[name], dtype=dtype) for _ in range(DRAWS)]
    formulas = [token_gather_attention_reference(**inputs) for inputs in draws]
    plain = [[sdpa(**inputs) for inputs in draws]]
    if dtype == torch.float32:  # torch's two ways differ much from case to case here
        plain.append([formula[0] for formula in formulas])
    return draws, [exact(inputs) for inputs in draws], formulas, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WITH_KEYS)
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    draws, expected, formulas, plain = draws_and_yardsticks(name, dtype)
    results = [token_gather_attention(**inputs) for inputs in draws]
    assert_within_twice_plain([r[0] for r in results], [e[0] for e in expected], *plain, dtype=dtype)
    assert_within_twice_plain(
        [r[1] for r in results], [e[1] for e in expected], [f[1] for f in formulas], dtype=torch.float32
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_key_bias_error_is_at_most_twice_plain_torch(cpu_isa: str, dtype: torch.dtype) -> None:
    draws = [make_inputs([21, 40], head_dim=64, dtype=dtype) for _ in range(DRAWS)]
    for inputs in draws:
        inputs["key_bias"] = 3 * torch.randn(61).to(dtype).float()  # plain torch rounds it to dtype
    actual = [token_gather_attention(**inputs)[0] for inputs in draws]
    plain = [[sdpa(**inputs) for inputs in draws]]
    if dtype == torch.float32:
        plain.append([token_gather_attention_reference(**inputs)[0] for inputs in draws])
    assert_within_twice_plain(actual, [exact(inputs)[0] for inputs in draws], *plain, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_features_match_the_reference(cpu_isa: str, feature: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(*FEATURE_LENGTHS, head_dim=40, dtype=dtype, **FEATURES[feature]())
    out, lse, importance = token_gather_attention(**inputs, importance=True)
    exact_out, exact_lse, exact_importance = exact(inputs | {"importance": True})
    assert out.dtype == dtype and lse.dtype == importance.dtype == torch.float32
    # logits reach hundreds: their rounding is what lse and the attention inherit
    logits = rounding(exact_lse, torch.float32)
    assert error(out, exact_out) <= 8 * rounding(exact_out, dtype) + 4 * logits * inputs["v"].abs().max()
    assert error(lse, exact_lse) <= 8 * logits
    assert error(importance, exact_importance) <= 8 * logits * max(1, exact_importance.max().item())


def test_dropout_bits_are_exactly_the_pattern(cpu_isa: str) -> None:
    """Equal logits and unit values show the kept attentions themselves in the output."""
    queries, keys, heads = 19, 37, 3
    seed = torch.tensor([2**63 - 5])
    inputs = make_inputs([2, queries], [5, keys], heads=heads, head_dim=keys)
    inputs["q"].zero_()
    inputs["v"][5:] = torch.eye(keys)[:, None, :]
    for dropout_p in (1e-6, 0.1, 0.5, 0.999):
        out, _, _ = token_gather_attention(**inputs, dropout_p=dropout_p, seed=seed)
        keep = dropout_keep(int(seed), 1, heads, queries, keys, dropout_p)
        assert torch.equal(out[2:].transpose(0, 1) > 0, keep)
        kept_scale = 1 / (1 - round_to_float32(dropout_p))
        torch.testing.assert_close(out[2:].transpose(0, 1), keep * kept_scale / keys)


def test_seed_comes_from_the_generator_of_torch() -> None:
    inputs = make_inputs([17, 30], dropout_p=0.5)
    torch.manual_seed(3)
    first, second = token_gather_attention(**inputs)[0], token_gather_attention(**inputs)[0]
    torch.manual_seed(3)
    assert_same_bits(token_gather_attention(**inputs)[0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_a_fused_projection(cpu_isa: str, dtype: torch.dtype) -> None:
    fused = torch.randn(20, 3, 2, 40, dtype=dtype)
    q, k, v = fused.unbind(1)
    assert not q.is_contiguous()
    inputs = make_inputs([13, 7], head_dim=40, dtype=dtype)
    whole = inputs | {"q": q.contiguous(), "k": k.contiguous(), "v": v.contiguous()}
    assert_same_bits(token_gather_attention(**inputs | {"q": q, "k": k, "v": v})[0], token_gather_attention(**whole)[0])
    by_head = {name: whole[name].transpose(0, 1).contiguous().transpose(0, 1) for name in "qkv"}
    assert_same_bits(token_gather_attention(**inputs | by_head)[0], token_gather_attention(**whole)[0])
    expanded = {"k": k[:, :1].expand(-1, 2, -1), "v": v[:1].expand(20, -1, -1)}
    assert_same_bits(
        token_gather_attention(**whole | expanded)[0],
        token_gather_attention(**whole | {name: x.contiguous() for name, x in expanded.items()})[0],
    )


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_gathering_is_the_same_as_copying_first(cpu_isa: str, index_dtype: torch.dtype) -> None:
    inputs = make_inputs([9, 4], [30, 8], head_dim=24)
    q_index = torch.randint(13, (11,), dtype=index_dtype)
    k_index = torch.randint(38, (50,), dtype=index_dtype)
    ragged = {"q_offsets": offsets_of([5, 6]), "k_offsets": offsets_of([33, 17]), "max_q": 6, "max_k": 33}
    gathered = token_gather_attention(**inputs | ragged, q_index=q_index, k_index=k_index, importance=True)
    copied = {"q": inputs["q"][q_index], "k": inputs["k"][k_index], "v": inputs["v"][k_index]}
    for actual, expected in zip(gathered, token_gather_attention(**copied, **ragged, importance=True), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("queries, keys", [(9, 9), (4, 11), (11, 4), (1, 20), (20, 1)])
def test_causal_is_aligned_at_the_last_query_and_key(cpu_isa: str, queries: int, keys: int) -> None:
    inputs = make_inputs([queries], [keys])
    out, lse, _ = token_gather_attention(**inputs, causal=True)
    for query in range(queries):
        visible = max(0, query + 1 + keys - queries)
        alone = make_inputs([1], [visible]) | {"q": inputs["q"][query : query + 1]}
        alone |= {name: inputs[name][:visible] for name in "kv"}
        exact_out, exact_lse, _ = exact(alone)
        assert_close(out[query : query + 1], exact_out, torch.float32)
        assert_close(lse[query : query + 1], exact_lse, torch.float32)


@pytest.mark.parametrize("name", [*NOTHING, "empty samples"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"dropout_p": 0.5, "seed": torch.tensor([1])}], ids=str)
def test_empty_samples(cpu_isa: str, name: str, options: dict) -> None:
    inputs = make_inputs(**(SHAPES | NOTHING)[name], **options)
    out, lse, importance = token_gather_attention(**inputs, importance=True)
    for actual, expected in zip((out, lse, importance), exact(inputs | {"importance": True}), strict=True):
        assert_close(actual, expected, torch.float32)
    without_keys = (inputs["k_offsets"].diff() == 0).repeat_interleave(inputs["q_offsets"].diff())
    assert (out[without_keys] == 0).all() and (lse[without_keys] == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_heads_are_zero_and_the_others_untouched(cpu_isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs([17, 40, 3], dtype=dtype, heads=3, importance=True)
    head_mask = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])
    of_token = head_mask.repeat_interleave(inputs["q_offsets"].diff(), 0)
    out, lse, importance = token_gather_attention(**inputs, head_mask=head_mask)
    all_out, all_lse, all_importance = token_gather_attention(**inputs)
    assert_same_bits(out, all_out.masked_fill(~of_token[:, :, None], 0))
    assert_same_bits(lse, all_lse.masked_fill(~of_token, -torch.inf))
    assert_same_bits(importance, all_importance.masked_fill(~of_token, 0))


def test_importance_of_a_sample_sums_to_its_queries(cpu_isa: str) -> None:
    inputs = make_inputs([17, 3], [40, 9])
    importance = token_gather_attention(**inputs, importance=True, dropout_p=0.4)[2]
    torch.testing.assert_close(importance[:40].sum(0), torch.full((2,), 17.0))
    torch.testing.assert_close(importance[40:].sum(0), torch.full((2,), 3.0))


def test_importance_is_empty_unless_asked_for() -> None:
    inputs = make_inputs([4])
    without, with_importance = (token_gather_attention(**inputs, importance=asked) for asked in (False, True))
    assert without[2].shape == (0,)
    assert_same_bits(without[0], with_importance[0])


def test_huge_logits_stay_finite(cpu_isa: str) -> None:
    inputs = make_inputs([19], scale=100.0)
    inputs["q"] *= 1e3
    out, lse, _ = token_gather_attention(**inputs)
    exact_out, exact_lse, _ = exact(inputs)
    assert_close(out, exact_out, torch.float32)
    assert_close(lse, exact_lse, torch.float32)


def test_longer_bounds_change_nothing() -> None:
    inputs = make_inputs([3, 8], [5, 1])
    for actual, expected in zip(
        token_gather_attention(**inputs | {"max_q": 1000, "max_k": 1000}),
        token_gather_attention(**inputs),
        strict=True,
    ):
        assert_same_bits(actual, expected)
