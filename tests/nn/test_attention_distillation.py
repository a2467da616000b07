"""CrossModalAttentionDistillationLoss against the padded formula of the paper in float64."""

import pytest
import torch
from attention_cases import assert_same_bits, offsets_of
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vleff.nn import CrossModalAttentionDistillationLoss

TEXT, IMAGE = [3, 11, 7], [20, 25, 16]
HEADS, MAX_TEXT = 2, 12


def rows(lengths: list[int], width: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(sum(lengths), HEADS, width), torch.randn(sum(lengths), HEADS, width)


def padded(values: Tensor, lengths: list[int], longest: int) -> Tensor:
    """[tokens, heads, width] -> [batch, heads, longest, width]"""
    whole = pad_sequence(values.double().split(lengths), batch_first=True).transpose(1, 2)
    return torch.nn.functional.pad(whole, (0, 0, 0, longest - whole.shape[2]))


def divergences(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], key_mask: Tensor) -> Tensor:
    """[batch, heads, queries] from padded queries and keys; masked keys get the smallest logit, not -inf."""
    maps = []
    for queries, keys in (teacher, student):
        logits = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        logits = logits.masked_fill(~key_mask[:, None, None], torch.finfo(logits.dtype).min)
        maps.append(logits.log_softmax(-1))
    return torch.nn.functional.kl_div(maps[1], maps[0], reduction="none", log_target=True).sum(-1)


def mask(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def arguments() -> dict:
    return {
        "teacher_text": rows(TEXT, 24),
        "teacher_image": rows(IMAGE, 24),
        "student_text": rows(TEXT),
        "student_image": rows(IMAGE),
        "text_offsets": offsets_of(TEXT),
        "image_offsets": offsets_of(IMAGE),
        "max_text": MAX_TEXT,
        "max_image": max(IMAGE),
    }


def padded_sides(inputs: dict) -> list[tuple[Tensor, Tensor]]:
    """For teacher and student: queries and keys of the text, then of the image."""
    return [
        tuple(padded(x, lengths, longest) for x in inputs[f"{side}_{modality}"])
        for side in ("teacher", "student")
        for modality, lengths, longest in (("text", TEXT, MAX_TEXT), ("image", IMAGE, max(IMAGE)))
    ]


def test_loss_is_that_of_the_padded_formula_over_real_queries() -> None:
    inputs = arguments()
    teacher_text, teacher_image, student_text, student_image = padded_sides(inputs)
    text_mask, image_mask = mask(TEXT, MAX_TEXT), mask(IMAGE, max(IMAGE))
    to_image = divergences((teacher_text[0], teacher_image[1]), (student_text[0], student_image[1]), image_mask)
    to_text = divergences((teacher_image[0], teacher_text[1]), (student_image[0], student_text[1]), text_mask)
    expected = (
        to_image.transpose(1, 2)[text_mask].mean() + to_text.transpose(1, 2)[image_mask].mean()
    )  # masked [queries, heads]
    loss = CrossModalAttentionDistillationLoss()(**inputs)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)


def test_padded_text_queries_count_where_asked() -> None:
    inputs = arguments()
    positions = torch.randn(2, 3, HEADS, MAX_TEXT, 24), torch.randn(2, 3, HEADS, MAX_TEXT, 16)
    teacher_text, teacher_image, student_text, student_image = padded_sides(inputs)
    text_mask, image_mask = mask(TEXT, MAX_TEXT), mask(IMAGE, max(IMAGE))
    queries = [x[0].double() for x in positions]  # padded positions have queries too
    to_image = divergences((queries[0], teacher_image[1]), (queries[1], student_image[1]), image_mask)
    to_text = divergences((teacher_image[0], teacher_text[1]), (student_image[0], student_text[1]), text_mask)
    expected = to_image.mean() + to_text.transpose(1, 2)[image_mask].mean()
    for side, whole in zip(("teacher", "student"), positions, strict=True):
        inputs[f"{side}_text"] = whole[0].transpose(1, 2).flatten(0, 1), inputs[f"{side}_text"][1]
    loss = CrossModalAttentionDistillationLoss(average_padded=True)(**inputs)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)


def test_gradients_reach_the_student_alone_and_a_copy_of_the_teacher_has_none() -> None:
    inputs = arguments()
    leaves = [x.requires_grad_() for side in ("student_text", "student_image") for x in inputs[side]]
    CrossModalAttentionDistillationLoss()(**inputs).backward()
    assert all((leaf.grad != 0).any() for leaf in leaves)
    copies = inputs | {
        f"teacher_{name}": tuple(x.detach() for x in inputs[f"student_{name}"]) for name in ("text", "image")
    }
    loss = CrossModalAttentionDistillationLoss()(**copies)
    assert loss == 0
    assert all(gradient.abs().max() < 1e-7 for gradient in torch.autograd.grad(loss, leaves))


def test_nothing_to_compare_is_no_loss() -> None:
    inputs = arguments()
    for name in ("teacher_text", "student_text", "teacher_image", "student_image"):
        inputs[name] = tuple(x[:0].requires_grad_(name.startswith("student")) for x in inputs[name])
    inputs |= {"text_offsets": offsets_of([0, 0]), "image_offsets": offsets_of([0, 0])}
    loss = CrossModalAttentionDistillationLoss()(**inputs)
    loss.backward()
    assert loss == 0


def test_compiles_once_for_all_token_counts() -> None:
    torch._dynamo.reset()
    module = CrossModalAttentionDistillationLoss()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for number in range(3):
        inputs = arguments()
        text, image = [2 + number, 5], [9, 13 + number]
        inputs |= {f"{side}_text": rows(text) for side in ("teacher", "student")}
        inputs |= {f"{side}_image": rows(image) for side in ("teacher", "student")}
        inputs |= {"text_offsets": offsets_of(text), "image_offsets": offsets_of(image)}
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            loss = compiled(**inputs)
        torch.testing.assert_close(loss, module(**inputs))


def test_unequal_numbers_of_heads_are_refused() -> None:
    inputs = arguments()
    inputs |= {name: tuple(x[:, :1] for x in inputs[name]) for name in ("student_text", "student_image")}
    with pytest.raises(ValueError, match="student_text: expected as many heads as the teacher, 2, got 1"):
        CrossModalAttentionDistillationLoss()(**inputs)


def test_missing_padded_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher_text: expected batch \* max_text = 36 queries, .+, got 21"):
        CrossModalAttentionDistillationLoss(average_padded=True)(**arguments())


def test_a_teacher_that_learns_is_refused() -> None:
    inputs = arguments()
    inputs["teacher_image"][1].requires_grad_()
    with pytest.raises(ValueError, match="argument 'teacher_k'"):
        CrossModalAttentionDistillationLoss()(**inputs)


def test_repr_and_state() -> None:
    module = CrossModalAttentionDistillationLoss(average_padded=True)
    assert "average_padded=True" in repr(module) and not module.state_dict()
    assert_same_bits(
        module(**batch_of_equal_lengths()), CrossModalAttentionDistillationLoss()(**batch_of_equal_lengths())
    )


def batch_of_equal_lengths() -> dict:
    torch.manual_seed(1)
    text, image = [4, 4], [5, 5]
    return arguments() | {
        "teacher_text": rows(text),
        "teacher_image": rows(image),
        "student_text": rows(text),
        "student_image": rows(image),
        "text_offsets": offsets_of(text),
        "image_offsets": offsets_of(image),
        "max_text": 4,
        "max_image": 5,
    }
