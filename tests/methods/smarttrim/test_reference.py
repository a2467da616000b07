"""Trimmed models against plain transformers layers in fp64, sample by sample, on what was kept."""

import copy

import pytest
import torch
from methods.smarttrim.families import trimmed
from model_cases import make_case
from transformers import ViltModel

from vleff import smarttrim


def without_heads(layer, output, heads, head_dim):
    """A copy of a plain layer in which dropped heads reach nothing: their columns of the output projection are 0."""
    layer = copy.deepcopy(layer)
    weight = layer.get_submodule(output).weight
    with torch.no_grad():
        weight.view(weight.shape[0], -1, head_dim)[:, ~heads] = 0
    return layer


def run_reference(layers, states, kept, output, heads, head_dim):
    """One sample: states [length, d]; for each layer kept bool [length], heads bool [heads] or None."""
    places = kept[0].nonzero().squeeze(1)
    states = states[places]
    for layer, keep, mask in zip(layers, kept, heads, strict=True):
        states, places = states[keep[places]], places[keep[places]]
        layer = layer if mask is None else without_heads(layer, output, mask, head_dim)
        result = layer(states[None])
        states = (result[0] if isinstance(result, tuple) else result)[0]
    return states, places


@pytest.fixture
def vilt():
    return trimmed(ViltModel)


def compare_vilt(vilt, runs, actual):
    plain = make_case(ViltModel).plain(torch.float64)  # the same weights
    inputs = vilt.case.inputs
    states, mask = plain.embeddings(
        inputs["input_ids"],
        inputs["attention_mask"],
        None,
        None,
        inputs["pixel_mask"],
        None,
        inputs["image_embeds"].double(),
    )
    layers = runs[0].layers
    with torch.no_grad():
        for sample in range(states.shape[0]):
            kept = [record.kept()[sample] for record in layers]
            assert torch.equal(kept[0], mask[sample].bool())
            heads = [None if not record.heads else record.heads["own"][sample] > 0.5 for record in layers]
            output = "attention.output.dense"
            expected, places = run_reference(plain.encoder.layer, states[sample], kept, output, heads, 16)
            expected = plain.layernorm(expected)
            torch.testing.assert_close(actual[sample, places].double(), expected, atol=2e-5, rtol=1e-5)
            rest = torch.ones(mask.shape[1], dtype=torch.bool).index_fill_(0, places, False)
            assert not actual[sample, rest].any()


def test_vilt_keeps_what_its_trimmers_say(vilt):
    with smarttrim.recorded(vilt.model) as runs:
        actual = vilt.outputs()["last_hidden_state"]
    assert not torch.equal(runs[0].layers[-1].kept(), runs[0].layers[0].kept())
    compare_vilt(vilt, runs, actual)


def everything_kept(vilt):
    """The record of a run in which nothing was dropped, on all tokens."""
    for parameter in smarttrim.trimmer_parameters(vilt.model).values():
        parameter.data.zero_()
    for name, parameter in smarttrim.trimmer_parameters(vilt.model).items():
        if name.endswith("score_bias"):
            parameter.data.fill_(5.0)
    with smarttrim.recorded(vilt.model) as runs, smarttrim.running(vilt.model, "masked"):
        vilt.outputs()
    return runs


@pytest.mark.parametrize("mode", ["gathered", "masked"])
def test_one_sample_keeps_everything_and_another_one_token_of_each_modality(vilt, mode):
    runs = everything_kept(vilt)
    for record in runs[0].layers[1:]:
        record.gates = record.gates.clone()
        first, second, third = (int(record.parts[part]) for part in (2, 3, 4))  # of the second sample
        record.gates[first:third] = 0
        record.gates[[first, second]] = 1
    with (
        smarttrim.repeated(vilt.model, runs),
        smarttrim.running(vilt.model, mode),
        smarttrim.recorded(vilt.model) as made,
    ):
        actual = vilt.outputs()["last_hidden_state"]
    assert made[0].layers[-1].kept_tokens().tolist() == [10, 2, 20, 2]
    compare_vilt(vilt, made, actual)


@pytest.mark.parametrize("mode", ["gathered", "masked"])
def test_all_heads_but_one_dropped(vilt, mode):
    runs = everything_kept(vilt)
    for record in runs[0].layers[1:]:
        record.heads["own"] = torch.arange(4)[None] == torch.tensor([0, 1, 2, 3])[:, None]
    with (
        smarttrim.repeated(vilt.model, runs),
        smarttrim.running(vilt.model, mode),
        smarttrim.recorded(vilt.model) as made,
    ):
        actual = vilt.outputs()["last_hidden_state"]
    assert all(record.heads["own"].sum() == 4 for record in made[0].layers[1:])
    compare_vilt(vilt, made, actual)


def test_one_head_stays_where_trimmers_want_none(vilt):
    for name, parameter in smarttrim.trimmer_parameters(vilt.model).items():
        if name.endswith("score_bias"):
            parameter.data.fill_(-100.0)
    with smarttrim.recorded(vilt.model) as runs:
        actual = vilt.outputs()["last_hidden_state"]
    for record in runs[0].layers[1:]:
        assert record.heads["own"].sum(1).tolist() == [1, 1, 1, 1]
        assert record.kept_tokens().tolist() == [2, 2, 2, 2]  # the first token of each modality
    compare_vilt(vilt, runs, actual)
