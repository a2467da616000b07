"""Distillation: soft labels, cross-modal attention over the same patches, the Trainer."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.dide.small_models import ANSWERS, PAIRS, TEACHERS, inputs, labels, shaken, student, teacher, texts
from torch import Tensor, nn
from torch.utils.data import Dataset

import vleff
from vleff.dide import DistillationConfig, DistillationTrainer, DualEncoder, FusionTeacher, distil, paper_arguments
from vleff.dide.losses import CrossModalAttention, attention_loss, distillation_loss, soft_label_loss
from vleff.models.queries_and_keys import last_attention, record_queries_and_keys
from vleff.models.vilt_patches import embed_patches

TASKS = list(TEACHERS)
HEADS, HEAD_DIM = 4, 16


def test_soft_labels_are_the_formulas() -> None:
    own, theirs = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    target, answer = theirs.sigmoid(), own.sigmoid()
    expected = -(target * answer.log() + (1 - target) * (1 - answer).log()).sum(1).mean()
    torch.testing.assert_close(soft_label_loss("vqa", own, theirs).double(), expected, rtol=1e-5, atol=0)
    probability = theirs.softmax(-1)
    expected = (probability * (probability.log() - own.log_softmax(-1))).sum(1).mean()
    for task in ("nlvr2", "snli-ve"):
        torch.testing.assert_close(soft_label_loss(task, own, theirs).double(), expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"argument 'teacher_logits': expected the student's \[5, 9\], got \[5, 8\]"):
        soft_label_loss("vqa", own, theirs[:, 1:])
    with pytest.raises(ValueError, match="argument 'task': expected one of"):
        soft_label_loss("captions", own, theirs)


def test_soft_labels_of_ranked_pairs_only() -> None:
    own, theirs = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)
    theirs[0, 1] = theirs[2, 3] = theirs[2, 0] = torch.nan
    loss, expected = soft_label_loss("retrieval", own, theirs), 0.0
    for s, t in ((own.detach().double(), theirs.double()), (own.detach().double().T, theirs.double().T)):
        for row, target in zip(s, t, strict=True):
            known = ~target.isnan()
            p = target[known].softmax(0)
            expected += float((p * (p.log() - row[known].log_softmax(0))).sum()) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert own.grad is not None and torch.isfinite(own.grad).all()
    assert own.grad[0, 1] == 0 and own.grad[0, 0] != 0


def eager_maps(fusion: Any, shared: Any, call: int) -> Tensor:
    """The last attention of a plain ViltModel as transformers makes it, [batch, heads, length, length]."""
    base = fusion.vilt
    images = {name: shared.teacher[name] for name in ("image_embeds", "pixel_mask")}
    if images["image_embeds"].dim() == 4:
        images = {name: value[:, call] for name, value in images.items()}
    text = {name: value for name, value in shared.teacher.items() if name not in images}
    kind = {"image_token_type_idx": call + 1} if len(shared.image_masks) > 1 else {}
    return base(**text, **images, **kind, output_attentions=True).attentions[-1]


def tower_projections(tower: Any, states: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries and keys of the last layer in fp64, [batch, heads, length, head_dim], from that layer's input."""
    own = tower.encoder.layer[-1].attention.attention
    for name in ("query", "key"):
        linear = getattr(own, name)
        product = states["normed"].double() @ linear.weight.double().T + linear.bias.double()
        states[name] = product.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    return states["query"], states["key"]


def cross_divergence(teacher_map: Tensor, student_logits: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Mean over heads and valid queries of KL(teacher || student); maps [batch, heads, queries, keys]."""
    hidden = ~keys[:, None, None, :]
    p = teacher_map.double().masked_fill(hidden, 0)
    p = p / p.sum(-1, keepdim=True)
    log_q = student_logits.masked_fill(hidden, -torch.inf).log_softmax(-1)
    terms = torch.where(p > 0, p * (p.clamp(min=1e-300).log() - log_q.masked_fill(hidden, 0)), 0.0).sum(-1)
    weight = queries[:, None, :].expand(-1, p.shape[1], -1)
    return (terms * weight).sum() / weight.sum()


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
@pytest.mark.parametrize("average_padded", [False, True])
def test_attention_loss_is_the_formula_on_the_maps_of_transformers(task: str, average_padded: bool) -> None:
    fusion, model, batch = teacher(task), student(task), inputs(task)
    shared = FusionTeacher(fusion).share(batch)
    seen: dict[str, list[Tensor]] = {"text": [], "image": []}
    hooks = [
        tower.encoder.layer[-1].layernorm_before.register_forward_hook(
            lambda _, __, out, kept=seen[name]: kept.append(out)
        )
        for name, tower in (("text", model.text_model), ("image", model.image_model))
    ]
    with torch.no_grad():
        maps = [eager_maps(fusion, shared, call) for call in range(len(shared.image_masks))]
    with record_queries_and_keys(model.text_model) as text, record_queries_and_keys(model.image_model) as image:
        model(**batch, patches=shared.patches)
    for hook in hooks:
        hook.remove()
    _, recording = FusionTeacher(fusion).show(shared)
    attention = CrossModalAttention(recording, text, image, shared.text_mask, shared.image_masks)
    loss = attention_loss(attention, average_padded)
    expected = []
    text_q, text_k = tower_projections(model.text_model, {"normed": seen["text"][0]})
    for call, image_mask in enumerate(shared.image_masks):
        image_q, image_k = tower_projections(model.image_model, {"normed": seen["image"][call]})
        length, scale = shared.text_mask.shape[1], HEAD_DIM**-0.5
        text_queries = torch.ones_like(shared.text_mask) if average_padded else shared.text_mask
        expected.append(
            cross_divergence(maps[call][:, :, :length, length:], scale * text_q @ image_k.mT, text_queries, image_mask)
            + cross_divergence(
                maps[call][:, :, length:, :length], scale * image_q @ text_k.mT, image_mask, shared.text_mask
            )
        )
    assert float(loss) == pytest.approx(float(sum(expected)) / len(expected), rel=1e-3)
    assert float(loss) > 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_accelerated_or_not_the_loss_and_its_gradients_are_the_same(task: str) -> None:
    fusion, model, batch = teacher(task), student(task), inputs(task) | {"labels": labels(task)}
    found = []
    for accelerated in (False, True):
        own, theirs = copy.deepcopy(model), copy.deepcopy(fusion)
        if accelerated:
            vleff.accelerate(own)
            vleff.accelerate(theirs)
        torch.manual_seed(1)  # the patches
        losses, _ = distil(own, FusionTeacher(theirs), batch, DistillationConfig(hard_label_weight=0.5))
        losses.total.backward()
        found.append((losses, {name: p.grad for name, p in own.named_parameters() if p.grad is not None}))
        assert all(p.grad is None for p in theirs.parameters())
    (plain, plain_gradients), (fast, fast_gradients) = found
    assert plain.parts.keys() == {"soft", "attention", "hard"}
    for name, part in plain.parts.items():
        torch.testing.assert_close(fast.parts[name], part, rtol=1e-4, atol=1e-8)
    total = plain.parts["soft"] + plain.parts["attention"] + 0.5 * plain.parts["hard"]
    torch.testing.assert_close(plain.total, total)
    assert plain_gradients.keys() == fast_gradients.keys() == dict(model.named_parameters()).keys()
    largest = max(float(g.abs().max()) for g in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest)


def test_teacher_and_student_see_the_same_patches() -> None:
    fusion, batch = teacher("vqa", max_image_length=5), inputs("vqa")
    model = DualEncoder.from_fusion(fusion, "vqa", num_labels=ANSWERS).eval()
    shared = FusionTeacher(fusion).share(batch)
    assert shared.patches.shape == (4, 5)  # five of up to sixteen
    embeddings = model.image_model.embeddings
    own, mask, _ = embed_patches(embeddings, batch["pixel_values"], batch["pixel_mask"], shared.patches)
    torch.testing.assert_close(own, shared.teacher["image_embeds"])
    assert torch.equal(mask.bool(), shared.image_masks[0])
    before = DualEncoder.forward
    seen = []

    def remember(self: DualEncoder, **arguments: Any) -> Any:
        seen.append(arguments.get("patches"))
        return before(self, **arguments)

    model.forward = remember.__get__(model)
    for config in (DistillationConfig(), DistillationConfig(attention_weight=0)):
        torch.manual_seed(3)
        distil(model, FusionTeacher(fusion), batch, config)
        torch.manual_seed(3)
        assert torch.equal(seen.pop(), FusionTeacher(fusion).share(batch).patches)


def test_no_loss_is_left_and_tokens_that_do_not_fit() -> None:
    model, batch = student("vqa"), inputs("vqa")
    output = model(**batch)
    with pytest.raises(ValueError, match="expected a teacher's logits, its attention or labels, got none"):
        distillation_loss("vqa", output, None)
    text, image, _ = PAIRS["clip"]
    other = shaken(DualEncoder.from_towers(text(), image(), "vqa", num_labels=ANSWERS))
    square = texts() | {"pixel_values": torch.randn(4, 3, 32, 32)}
    fusion = teacher("vqa", patch_size=16)
    with pytest.raises(ValueError, match=r"expected a student with the image tokens of its teacher, .* \[4, 5\]"):
        distil(other, FusionTeacher(fusion), square, DistillationConfig())
    losses, _ = distil(other, FusionTeacher(fusion), square, DistillationConfig(attention_weight=0))
    assert losses.parts.keys() == {"soft"}
    with pytest.raises(TypeError, match="expected ViLT to distil attention from, got BertModel"):
        distil(other, FusionTeacher(PAIRS["bert and vit"][0]()), square, DistillationConfig())
    with pytest.raises(TypeError, match="expected one whose last layer has linear layers for queries and for keys"):
        last_attention(nn.Linear(2, 2))
    for arguments, message in (
        ({"soft_weight": -1}, "'soft_weight': expected at least 0, got -1"),
        ({"candidates": 1}, "'candidates': expected at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillationConfig(**arguments)


def test_clip_learns_attention_where_its_tokens_fit() -> None:
    text, image, _ = PAIRS["clip"]
    model = shaken(DualEncoder.from_towers(text(), image(), "vqa", num_labels=ANSWERS))
    batch = texts() | {"pixel_values": torch.randn(4, 3, 32, 32)}
    losses, _ = distil(vleff.accelerate(model), FusionTeacher(teacher("vqa")), batch, DistillationConfig())
    losses.parts["attention"].backward()
    gradient = model.text_model.encoder.layers[-1].self_attn.q_proj.weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_cached_logits_spare_the_teacher() -> None:
    model, batch, fusion = student("vqa"), inputs("vqa"), teacher("vqa")
    with torch.no_grad():
        cached = torch.randn(4, ANSWERS)
    soft_only = DistillationConfig(attention_weight=0)
    losses, output = distil(model, None, batch | {"teacher_logits": cached}, soft_only)
    torch.testing.assert_close(losses.total, soft_label_loss("vqa", output.logits, cached))
    both, output = distil(model, FusionTeacher(fusion), batch | {"teacher_logits": cached}, DistillationConfig())
    torch.testing.assert_close(both.parts["soft"], soft_label_loss("vqa", output.logits, cached))
    assert "attention" in both.parts


def test_a_retrieval_teacher_ranks_the_most_similar() -> None:
    fusion, batch = teacher("retrieval"), inputs("retrieval")
    judge = FusionTeacher(fusion)
    shared = judge.share(batch)
    scores = torch.tensor([[0.0, 5, 1, 2], [3, 0, 4, 9], [1, 1, 1, 7], [2, 8, 3, 0]])
    ranked = judge.rank(shared.teacher, scores, 2)
    wanted = torch.eye(4, dtype=torch.bool)
    wanted[[0, 1, 2, 3], [1, 3, 3, 1]] = True  # of texts
    wanted[[1, 3, 1, 1], [0, 1, 2, 3]] = True  # of images
    assert torch.equal(~ranked.isnan(), wanted)
    for text, image in wanted.nonzero().tolist():
        one = {name: value[text : text + 1] for name, value in shared.teacher.items()}
        one |= {name: shared.teacher[name][image : image + 1] for name in ("image_embeds", "pixel_mask")}
        assert float(judge.answer(one)) == pytest.approx(float(ranked[text, image]), abs=1e-5)


class Batches(Dataset):
    def __init__(self, task: str, count: int = 16) -> None:
        torch.manual_seed(5)
        self.batch = {name: torch.cat([value] * (count // 4)) for name, value in inputs(task).items()}
        self.batch["labels"] = torch.cat([labels(task)] * (count // 4))

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: value[number] for name, value in self.batch.items()}


def trainer(model: DualEncoder, fusion: Any, folder: Path, **arguments: Any) -> DistillationTrainer:
    task = model.config.task
    settings = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 2e-3, "disable_tqdm": True}
    settings |= {"logging_steps": 3, "save_steps": 6, "warmup_steps": 0}
    made = paper_arguments(task, str(folder), **settings | arguments)
    return DistillationTrainer(model, made, FusionTeacher(fusion), train_dataset=Batches(task))


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
def test_trainer_lowers_the_losses(task: str, tmp_path: Path) -> None:
    fusion = teacher(task)
    before = copy.deepcopy(fusion.state_dict())
    labels_of = {"num_labels": ANSWERS} if task == "vqa" else {}
    model = vleff.accelerate(DualEncoder.from_fusion(fusion, task, **labels_of))
    run = trainer(model, vleff.accelerate(fusion), tmp_path)
    run.train()
    history = [entry for entry in run.state.log_history if "soft_loss" in entry]
    assert history[-1]["soft_loss"] < history[0]["soft_loss"]
    assert history[-1]["attention_loss"] < history[0]["attention_loss"]
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    assert all(torch.equal(value, before[name]) for name, value in fusion.state_dict().items())


def test_trainer_resumes_to_the_same_weights(tmp_path: Path) -> None:
    fusion = teacher("vqa")
    results = []
    for folder, interrupted in ((tmp_path / "one", False), (tmp_path / "two", True)):
        torch.manual_seed(0)
        model = DualEncoder.from_fusion(fusion, "vqa", num_labels=ANSWERS)
        run = trainer(model, fusion, folder)
        if interrupted:
            run.train()
            torch.manual_seed(0)
            model = DualEncoder.from_fusion(fusion, "vqa", num_labels=ANSWERS)
            run = trainer(model, fusion, folder)
            run.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
        else:
            run.train()
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


def test_the_papers_settings(tmp_path: Path) -> None:
    for task, epochs, batch in (("nlvr2", 20, 128), ("snli-ve", 10, 256), ("vqa", 10, 256)):
        made = paper_arguments(task, str(tmp_path))
        assert (made.num_train_epochs, made.per_device_train_batch_size) == (epochs, batch)
        assert (made.adam_beta1, made.adam_beta2, made.adam_epsilon) == (0.9, 0.98, 1e-8)
        assert (made.learning_rate, made.weight_decay) == (1e-4, 0.01)
        assert made.get_warmup_steps(1000) == 100 and made.lr_scheduler_type == "linear"
    for task, factor in (("vqa", 10), ("nlvr2", 1)):
        model = student(task)
        optimizer = trainer(model, teacher(task), tmp_path, learning_rate=1e-3).create_optimizer()
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            expected = 1e-3 * (factor if name.startswith("head.") else 1)
            assert rates[id(parameter)] == pytest.approx(expected), name
