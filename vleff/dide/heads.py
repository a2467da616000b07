"""The shallow heads of a dual encoder: all that text and image have in common, computed for each pair.

A head takes representations [..., width] of text and of images whose leading dimensions broadcast: pairs, or
[texts, 1, width] with [images, width] for all combinations. What depends on one modality alone is computed once.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShallowInteraction(nn.Module):
    """Linear(2w -> 2w), LayerNorm, GELU, Linear(2w -> w) over [text; image]; w = width.

    The first weight's columns for text and for images are two layers, so that with one text and many images, or many
    texts and one image, each half is computed once.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(width, 2 * width)
        self.image = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)
        self.output = nn.Linear(2 * width, width)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """text, image [..., width] -> [..., width]"""
        return self.output(functional.gelu(self.norm(self.text(text) + self.image(image))))


def classifier(inputs: int, hidden: int, labels: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear: [..., inputs] -> [..., labels]"""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, labels))


class ClassificationHead(nn.Module):
    """One class for a text and an image: answers, or entailment."""

    images = 1

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.fusion = ShallowInteraction(width)
        self.classifier = classifier(width, 2 * width, labels)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """text, image [..., width] -> logits [..., labels]"""
        return self.classifier(self.fusion(text, image))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy; of float labels [batch, labels], the shares of each answer, binary and summed over them."""
        if labels.is_floating_point():
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * labels.shape[-1]
        return functional.cross_entropy(logits, labels)


class PairOfImagesHead(nn.Module):
    """One class for a text and two images, each of which is fused with the text by itself."""

    images = 2

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.fusion = ShallowInteraction(width)
        self.classifier = classifier(2 * width, 2 * width, labels)

    def forward(self, text: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """text, first, second [..., width] -> logits [..., labels]"""
        fused = [self.fusion(text, image) for image in (first, second)]
        return self.classifier(torch.cat(torch.broadcast_tensors(*fused), -1))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return functional.cross_entropy(logits, labels)


class RetrievalHead(nn.Module):
    """How well text and image fit: their product, of unit vectors the cosine, over a learnt temperature."""

    images = 1

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """text, image [..., width] -> scores [...]"""
        return self.log_scale.exp() * (text * image).sum(-1)

    def all_pairs(self, text: Tensor, image: Tensor) -> Tensor:
        """text [texts, width], image [images, width] -> scores [texts, images]"""
        return self.log_scale.exp() * text @ image.mT

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Contrastive, both ways: scores [batch, batch]; of texts and images with the same label all pairs are right.

        Args:
            labels: int64 [batch], what text and image of a pair are about.
        """
        same = (labels[:, None] == labels).to(scores.dtype)
        right = same / same.sum(1, keepdim=True)
        return (functional.cross_entropy(scores, right) + functional.cross_entropy(scores.mT, right)) / 2
