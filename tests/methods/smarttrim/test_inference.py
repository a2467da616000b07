"""What an attached model computes in evaluation mode, in every family."""

import copy

import pytest
import torch
from methods.smarttrim.families import Trimmed
from model_cases import tensors

from vleff import smarttrim


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        scale = max(float(wanted.abs().max()), 1.0)
        torch.testing.assert_close(actual[name], wanted, atol=tolerance * scale, rtol=0, msg=name)


def record(family: Trimmed, mode: str | None = None):
    with smarttrim.recorded(family.model) as runs:
        if mode is None:
            return family.outputs(), runs
        with smarttrim.running(family.model, mode):
            return family.outputs(), runs


def test_trimmers_drop_a_part_of_tokens_and_heads(family):
    kept = smarttrim.kept_by(family.model, record(family)[1])
    shares = [one.token_share for one in kept.layers]
    assert min(shares) < 0.9 and kept.flop_ratio < 0.9
    heads = {
        sum(counts) / len(counts) / one.all_heads[block] for one in kept.layers for block, counts in one.heads.items()
    }
    assert 0.1 < min(heads) < 0.9


def test_masked_and_gathered_agree(family):
    gathered, runs = record(family)
    masked, masked_runs = record(family, "masked")
    for run, other in zip(runs, masked_runs, strict=True):
        for one, two in zip(run.layers, other.layers, strict=True):
            near = one.logits is not None and bool((one.logits.abs() < 1e-4).any())
            assert near or torch.equal(one.kept(), two.kept())
            for block, heads in one.heads.items():
                assert torch.equal(heads, two.heads[block] > 0.5)
    assert_close(masked, gathered)


def test_repeated_decisions_give_the_same_outputs_in_both_modes(family):
    family.model.train()
    for module in family.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with smarttrim.running(family.model, "gathered"):  # training mode draws
        drawn, runs = record(family)
    family.model.eval()
    with smarttrim.repeated(family.model, runs):
        inference = family.outputs()
    with smarttrim.repeated(family.model, runs), smarttrim.running(family.model, "masked"):
        masked = family.outputs()
    assert_close(masked, inference)
    assert drawn.keys() == inference.keys()


def test_both_modes_count_the_same_tokens_heads_and_multiply_adds(family):
    _, runs = record(family)
    with smarttrim.repeated(family.model, runs):
        _, masked_runs = record(family, "masked")
    gathered, masked = (smarttrim.kept_by(family.model, made) for made in (runs, masked_runs))
    for one, two in zip(gathered.layers, masked.layers, strict=True):
        assert (one.initial, one.tokens, one.heads) == (two.initial, two.tokens, two.heads)
    assert abs(gathered.flop_ratio - masked.flop_ratio) < 1e-6


@pytest.mark.parametrize("mode", ["gathered", "masked"])
def test_inference_mode_gives_the_same(family, mode):
    expected, runs = record(family, mode)
    torch.manual_seed(0)
    with torch.inference_mode(), smarttrim.running(family.model, mode), smarttrim.repeated(family.model, runs):
        actual = tensors(family.model(**family.case.inputs))
    assert_close(actual, expected)


def test_full_capacity_is_the_accelerated_model(family):
    with smarttrim.running(family.model, "full"):
        actual = family.outputs()
    expected = family.outputs(family.accelerated)
    assert all(torch.equal(actual[name], wanted) for name, wanted in expected.items() if name in actual)


def test_detached_is_the_accelerated_model(family):
    names = family.model.state_dict().keys()
    smarttrim.detach(family.model)
    actual, expected = family.outputs(), family.outputs(family.accelerated)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], wanted) for name, wanted in expected.items())
    assert family.accelerated.state_dict().keys() == family.model.state_dict().keys() < names
    assert type(family.model) is type(family.accelerated)


def test_a_sample_does_not_depend_on_its_batch_mates(family):
    inputs = family.case.inputs
    batch = next(iter(inputs.values())).shape[0]
    together = family.outputs()
    for sample in range(batch):
        alone = family.outputs(**{name: value[sample : sample + 1] for name, value in inputs.items()})
        for name, wanted in together.items():
            if wanted.shape[:1] == (batch,) and not name.startswith("logits_per"):  # of all pairs in the batch
                assert torch.equal(alone[name][0], wanted[sample]), f"{name} of sample {sample}"


def test_the_same_bits_at_any_number_of_threads(family, with_threads):
    one, two = (with_threads(threads, family.outputs) for threads in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_copies_are_attached(family):
    copied = copy.deepcopy(family.model)
    expected, actual = family.outputs(), family.outputs(copied)
    assert all(torch.equal(actual[name], wanted) for name, wanted in expected.items())
    with smarttrim.running(copied, "full"):  # does not reach the original
        assert all(torch.equal(family.outputs()[name], wanted) for name, wanted in expected.items())


def test_bfloat16(family):
    expected = family.outputs()
    family.model.to(torch.bfloat16)
    inputs = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in family.case.inputs.items()}
    with smarttrim.recorded(family.model) as runs:
        actual = family.outputs(**inputs)
    assert all(value.isfinite().all() for value in actual.values()) and actual.keys() == expected.keys()
    with smarttrim.repeated(family.model, runs), smarttrim.running(family.model, "masked"):
        masked = family.outputs(**inputs)
    for name, wanted in actual.items():
        difference = (masked[name].float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-6)
        assert difference < 0.05, name
