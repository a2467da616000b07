"""The pair-to-sequence generator on the GPU: it learns there, and writes what it writes on the CPU."""

from pathlib import Path

import pytest
import torch
from methods.unanswerable.generators import items, model, pairs, sources
from torch import Tensor

from vleff.ops import ragged_lstm
from vleff.unanswerable.generation import GenerationSettings
from vleff.unanswerable.training import GeneratorTraining, train_generator


def test_losses_and_gradients_agree_with_the_cpu(cuda: torch.device) -> None:
    made = model()
    batch = made.collator()(items())

    def loss_and_gradients() -> tuple[Tensor, dict[str, Tensor]]:
        made.zero_grad()
        device = made.device
        loss = made(**{name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}).loss
        loss.backward()
        return loss.detach().cpu(), {
            name: parameter.grad.cpu().clone()
            for name, parameter in made.named_parameters()
            if parameter.grad is not None
        }

    loss, gradients = loss_and_gradients()
    made.to(cuda)
    on_the_gpu, gradients_there = loss_and_gradients()
    torch.testing.assert_close(on_the_gpu, loss, atol=1e-4, rtol=1e-4)
    assert gradients_there.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_there[name], gradient, atol=2e-4 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(beams=1),
        GenerationSettings(beams=4),
        GenerationSettings(sample=True, top_p=0.9),
    ],
    ids=["greedy", "beams", "draws"],
)
def test_writes_what_it_writes_on_the_cpu(settings: GenerationSettings, cuda: torch.device) -> None:
    made = model()
    expected = made.generate(sources(), count=2, settings=settings)
    actual = made.to(cuda).generate(sources(), count=2, settings=settings)
    same = sum(one[0].text == other[0].text for one, other in zip(actual, expected, strict=True))
    assert len(actual) == len(expected)
    assert same >= len(expected) - 1  # words that are as likely as others may change places


def test_it_is_trained_there_and_writes(cuda: torch.device, tmp_path: Path) -> None:
    made = model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    train_generator(made, pairs()[:8], GeneratorTraining(steps=2, batch=4), tmp_path, quiet=True)
    assert made.device.type == cuda.type
    after = made.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value.cpu(), before[name]) for name, value in after.items())
    assert all(made.generate(sources(3)))


def test_an_lstm_waits_for_nothing_and_autocast_changes_no_bit(cuda: torch.device) -> None:
    gates = torch.randn(7, 2 * 4 * 8, device=cuda, requires_grad=True)
    weight = torch.randn(2, 4 * 8, 8, device=cuda, requires_grad=True)
    offsets = torch.tensor([0, 3, 3, 7], dtype=torch.int32, device=cuda)

    def results() -> list[Tensor]:
        hidden, cell = ragged_lstm(gates, weight, offsets, 4)
        return [hidden.detach(), cell, *torch.autograd.grad(hidden.sum(), [gates, weight])]

    expected = results()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = results()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            hidden, cell = ragged_lstm(gates, weight, offsets, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip([*found, hidden, cell], [*expected, *expected[:2]], strict=True):
        assert torch.equal(one, other)
