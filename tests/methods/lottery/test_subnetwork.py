"""Subnetworks of real transformers models: extracted, trained, accelerated, saved, loaded, exported."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from methods.lottery.families import FAMILIES, bert, inputs_of
from torch import nn

import vleff
from vleff.lottery import FrozenRemainderLinear, extract, from_pretrained, masked_layers, save_pretrained, to_dense
from vleff.nn import MaskedLinear


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    return FAMILIES[request.param]().eval()


def outputs_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(0)  # ViLT draws patches
    outputs = model(**inputs)
    return [outputs.logits] if hasattr(outputs, "logits") else [outputs.start_logits, outputs.end_logits]


def assert_same_outputs(actual: nn.Module, expected: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for ours, plain in zip(outputs_of(actual, inputs), outputs_of(expected, inputs), strict=True):
            padded = torch.zeros(plain.shape[:2], dtype=torch.bool)
            if plain.dim() == 2 and plain.shape == inputs["attention_mask"].shape:  # logits of tokens
                padded = inputs["attention_mask"] == 0
                ours, plain = ours.masked_fill(padded, 0), plain.masked_fill(padded, 0)
            torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


def masks_of(model: nn.Module, share: float = 0.3) -> dict[str, torch.Tensor]:
    """Random masks of the linear layers inside the repeated layers."""
    return {
        name: torch.rand(layer.weight.shape) < share
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and any(part.isdigit() for part in name.split(".")) and "classifier" not in name
    }


def apply_masks(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.mul_(mask)


def test_the_subnetwork_computes_what_the_masked_model_does(model: transformers.PreTrainedModel) -> None:
    masks, inputs = masks_of(model), inputs_of(model)
    assert len(masks) >= 12
    apply_masks(model, masks)
    reference = copy.deepcopy(model)
    extract(model, masks)
    assert masked_layers(model).keys() == masks.keys()
    assert_same_outputs(model, reference, inputs)
    assert_same_outputs(to_dense(model), reference, inputs)
    accelerated = vleff.accelerate(model)
    assert_same_outputs(accelerated, reference, inputs)
    report = str(vleff.explain(accelerated))
    assert "masked_linear" in report and "zeros" in report
    assert_same_outputs(vleff.restore(accelerated), reference, inputs)


@pytest.mark.parametrize("remainder", ["zero", "frozen"])
def test_only_the_subnetwork_is_tuned(model: transformers.PreTrainedModel, remainder: str) -> None:
    masks, inputs = masks_of(model), inputs_of(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    extract(model, masks, remainder)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.float().square().sum() for output in outputs_of(model, inputs)).backward()
        optimizer.step()
    after = dict(to_dense(model).named_parameters())
    for name, mask in masks.items():
        old, new = before[f"{name}.weight"], after[f"{name}.weight"]
        assert (new[mask] != old[mask]).float().mean() > 0.9, name
        assert torch.equal(new[~mask], old[~mask] if remainder == "frozen" else torch.zeros_like(old[~mask]))
    embeddings = [name for name in before if "word_embeddings" in name or name == "shared.weight"]
    assert embeddings and all(torch.equal(after[name], before[name]) for name in embeddings)
    state = sum(s.numel() for group in optimizer.state.values() for s in group.values() if s.dim())
    elements = sum(int(mask.sum()) for mask in masks.values())
    dense = sum(mask.numel() for mask in masks.values())
    others = sum(p.numel() for p in trained) - elements
    assert state == 2 * (elements + others) and elements < 0.35 * dense


@pytest.mark.parametrize("remainder", ["zero", "frozen"])
def test_saved_and_loaded(model: transformers.PreTrainedModel, remainder: str, tmp_path: Path) -> None:
    inputs = inputs_of(model)
    extract(model, masks_of(model), remainder)
    save_pretrained(model, tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(model) and not loaded.training
    for (name, ours), (other, theirs) in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs)
    assert_same_outputs(loaded, model, inputs)
    with pytest.raises(FileExistsError, match="holds a subnetwork already"):
        save_pretrained(model, tmp_path / "saved")
    with pytest.raises(OSError):  # plain transformers finds no weights that it could misread
        type(model).from_pretrained(tmp_path / "saved")
    to_dense(model).save_pretrained(tmp_path / "dense")
    assert_same_outputs(type(model).from_pretrained(tmp_path / "dense").eval(), model, inputs)


def test_saved_while_accelerated(tmp_path: Path) -> None:
    model = bert().eval().to(torch.bfloat16)
    extract(model, masks_of(model))
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_pretrained(vleff.accelerate(model), tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved")
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, plain[name]) for name, tensor in loaded.state_dict().items())


def test_weights_loaded_while_accelerated_stay_after_restore() -> None:
    model = bert().eval()
    vleff.accelerate(extract(model, masks_of(model)))
    state = {name: tensor + 1 if name.endswith("values") else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    vleff.restore(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_file_is_as_small_as_the_subnetwork(tmp_path: Path) -> None:
    model = bert()
    dense = sum(parameter.numel() * 4 for parameter in model.parameters())
    masks = masks_of(model, 0.1)
    saved = sum(mask.numel() for mask in masks.values()) * 4
    extract(model, masks)
    save_pretrained(model, tmp_path)
    elements = sum(int(mask.sum()) for mask in masks.values())
    places = sum(layer.starts.numel() * 5 for layer in masked_layers(model).values() if isinstance(layer, MaskedLinear))
    assert (tmp_path / "subnetwork.safetensors").stat().st_size < dense - saved + elements * 5 + places + 20_000


def test_bad_input(tmp_path: Path) -> None:
    model = bert()
    masks = masks_of(model)
    name = next(iter(masks))
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"masks": {"nowhere": masks[name]}}, KeyError, "got 'nowhere'"),
        ({"masks": {name: masks[name][1:]}}, ValueError, r"expected bool \[64, 64\], got \[63, 64\]"),
        ({"masks": {name: masks[name].float()}}, TypeError, r"expected torch\.bool"),
        ({"masks": {"bert.embeddings.word_embeddings": masks[name]}}, TypeError, r"expected an nn\.Linear"),
        ({"masks": masks, "remainder": "gone"}, ValueError, "expected one of zero, frozen, got 'gone'"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            extract(model, **arguments)
    assert not masked_layers(model)
    with pytest.raises(ValueError, match="expected a model with masked layers"):
        save_pretrained(model, tmp_path)
    with pytest.raises(FileNotFoundError):
        from_pretrained(tmp_path)
    extract(model, masks)
    save_pretrained(model, tmp_path)
    description = json.loads((tmp_path / "subnetwork.json").read_text())
    for change, message in (
        ({"format": 2}, "expected format 1, got 2"),
        ({"class": "os.system"}, "expected a model class of transformers or vleff"),
        ({"class": "transformers.AutoConfig"}, "expected a model class"),
    ):
        (tmp_path / "subnetwork.json").write_text(json.dumps(description | change))
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path)


def test_a_frozen_remainder_says_so() -> None:
    linear = nn.Linear(8, 4)
    layer = FrozenRemainderLinear.from_dense(linear, torch.rand(4, 8) < 0.5)
    input = torch.randn(3, 8)
    torch.testing.assert_close(layer(input), linear(input))
    assert "because the remainder is frozen" in layer.explain() and "elements=" in repr(layer)
