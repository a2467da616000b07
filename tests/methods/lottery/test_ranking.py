"""Exact selection of the weights that stay, and how heads weigh in."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vleff.lottery import LotteryConfig, combined_scores, select_masks
from vleff.lottery.matrices import AttentionMatrices


def expected_masks(scores: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """By a stable sort of all scores."""
    flat = torch.cat([score.flatten().clamp(min=-1) for score in scores.values()])
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


@given(st.floats(0, 1), st.sampled_from([0, 1, 3, 1000]), st.integers(0, 100))
def test_selection_is_that_of_a_stable_sort(sparsity: float, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.rand(shape, generator=generator) for name, shape in {"a": (7, 9), "b": (1, 1), "c": (4, 50)}.items()
    }
    if levels:  # ties
        scores = {name: (score * levels).floor() / levels * 10.0 ** (seed % 20 - 10) for name, score in scores.items()}
    scores["a"][0, :5] = -1.0
    scores["c"][1] = 0.0
    for ranking in ("global", "matrix"):
        actual = select_masks(scores, sparsity, ranking)
        groups = [scores] if ranking == "global" else [{name: score} for name, score in scores.items()]
        for group in groups:
            for name, mask in expected_masks(group, sparsity).items():
                assert torch.equal(actual[name], mask), (ranking, name)


def test_many_scores_are_ranked_fast() -> None:
    """As many as BERT-base has; the bound is for two slow cores, in seconds of both."""
    scores = {str(layer): torch.rand(1024, 4152) for layer in range(20)}
    start = time.process_time()
    masks = select_masks(scores, 0.7)
    assert time.process_time() - start < 8
    assert sum(int(mask.sum()) for mask in masks.values()) == 20 * 1024 * 4152 - round(0.7 * 20 * 1024 * 4152)


def test_bad_scores() -> None:
    with pytest.raises(ValueError, match="NaN in 'a'"):
        select_masks({"a": torch.tensor([1.0, torch.nan])}, 0.5)
    with pytest.raises(ValueError, match=r"'sparsity': expected 0 to 1, got 1\.5"):
        select_masks({"a": torch.ones(3)}, 1.5)
    with pytest.raises(ValueError, match="expected one of global, matrix, got 'layer'"):
        select_masks({"a": torch.ones(3)}, 0.5, "layer")


def test_heads_weigh_in() -> None:
    attention = AttentionMatrices("attention", "q", "k", "v", "o", heads=2)
    weights = {name: torch.full((4, 6) if name != "o" else (6, 4), -2.0) for name in "qkvo"} | {"ffn": torch.ones(3, 3)}
    config = LotteryConfig(sparsity=0.5, end_step=1, strength=2.0, most_head=1.4)
    scores = combined_scores(weights, [attention], {"attention": torch.tensor([1.0, 3.0])}, config)
    for name in "qkv":
        assert scores[name][:, 0].tolist() == [2 * 0.5**2] * 2 + [pytest.approx(2 * 1.4**2)] * 2
    assert scores["o"][0].tolist() == scores["q"][:, 0].tolist()
    assert torch.equal(scores["ffn"], weights["ffn"])
    flat = combined_scores(weights, [attention], {"attention": torch.tensor([-1.0, -3.0])}, config)
    assert torch.equal(flat["q"], weights["q"].abs())
    with pytest.raises(KeyError):
        combined_scores(weights, [attention], {}, config)


def test_schedule() -> None:
    config = LotteryConfig(sparsity=0.8, start_step=10, end_step=110, interval=20)
    assert config.sparsity_at(10) == 0 and config.sparsity_at(110) == 0.8 and config.sparsity_at(500) == 0.8
    assert config.sparsity_at(60) == pytest.approx(0.8 * (1 - 0.5**3))
    assert [step for step in range(200) if config.prunes_after(step)] == [30, 50, 70, 90, 110]
    assert LotteryConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [("sparsity", 1.0), ("sparsity", -0.1), ("start_step", -1), ("end_step", 0), ("interval", 0), ("ranking", "x"),
     ("strength", -1.0), ("least_head", 0.0)],
)  # fmt: skip
def test_bad_configs(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"argument '{name}': expected .*, got {value!r}"):
        LotteryConfig(**({"sparsity": 0.5, "end_step": 10} | {name: value}))
