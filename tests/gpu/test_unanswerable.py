"""The pair-to-sequence generator on the GPU: it learns there, and writes what it writes on the CPU."""

import pytest
import torch
from methods.unanswerable.generators import items, model, sources
from torch import Tensor

from vleff.unanswerable.generation import GenerationSettings


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
