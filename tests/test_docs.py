"""The Python examples on the documentation's pages run as they stand, in the order of their page."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from data_vqa.small_clothes import write_small_clothes
from methods.dide import small_models
from model_cases import make_case

import vleff
import vleff.lottery
import vleff.ops
from vleff import dide
from vleff.nn import RaggedBatch
from vleff.self_test.targets import gpu_problem_here

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: re.findall(r"```python\n(.*?)```", page.read_text(), re.S) for page in ROOT.glob("docs/*.md")}
WITH_OWN_TESTS = {"smarttrim", "unanswerable", "augmentation"}
WIDTH = 12 * 64
OFFSETS = torch.tensor([0, 3, 8], dtype=torch.int32)


def reader() -> Any:
    return make_case(transformers.BertForQuestionAnswering).model


def checkpoint(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def accelerate(folder: Path) -> dict[str, Any]:
    return {"checkpoint": checkpoint(reader(), folder)}


def serving(folder: Path) -> dict[str, Any]:
    return {"checkpoint": checkpoint(make_case(transformers.BertModel).model, folder)}


def index(folder: Path) -> dict[str, Any]:
    return accelerate(folder)


def attention_distillation(folder: Path) -> dict[str, Any]:
    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, 12, 64)

    text, image = OFFSETS, torch.tensor([0, 6, 10], dtype=torch.int32)
    return {
        **{f"{model}_q": rows(8) for model in ("teacher", "student")},
        **{f"{model}_k": rows(10) for model in ("teacher", "student")},
        "q": rows(8),
        "k": rows(8),
        "q_offsets": text,
        "k_offsets": image,
        "longest_q": 5,
        "longest_k": 6,
        "text_offsets": text,
        "image_offsets": text,
    }


def copy_attention(folder: Path) -> dict[str, Any]:
    def batch() -> RaggedBatch:
        return RaggedBatch(torch.randn(8, 300), OFFSETS, 5)

    return {
        "question": batch(),
        "paragraph": batch(),
        "question_ids": torch.randint(30_005, (8,), dtype=torch.int32),
        "paragraph_ids": torch.randint(30_005, (8,), dtype=torch.int32),
        "decoded": batch(),
        "targets": torch.randint(30_000, (8,), dtype=torch.int32),
        "beams": batch(),
        "extended_size": 30_005,
    }


def head_masked_linear(folder: Path) -> dict[str, Any]:
    def linear() -> torch.nn.Linear:
        return torch.nn.Linear(WIDTH, WIDTH)

    return {
        "tokens": torch.randn(8, WIDTH),
        "offsets": OFFSETS,
        "longest": 5,
        "head_mask": torch.rand(2, 12) < 0.5,
        "qkv_weight": torch.randn(3 * WIDTH, WIDTH),
        "qkv_bias": torch.randn(3 * WIDTH),
        "output_weight": torch.randn(WIDTH, WIDTH),
        "output_bias": torch.randn(WIDTH),
        **{name: linear() for name in ("q", "k", "v", "dense")},
    }


def dide_page(folder: Path) -> dict[str, Any]:
    small_models.write_pictures(folder / "pictures")
    model = small_models.saved(small_models.student("vqa"), folder / "model")
    accelerated = vleff.accelerate(dide.DualEncoder.from_pretrained(model))
    images = dide.image_files(folder / "pictures")
    dide.encode(accelerated, small_models.preprocessor(), images, folder / "store", quiet=True)
    case = make_case(transformers.ViltForQuestionAnswering, num_labels=7)
    questions = [{name: value[number] for name, value in case.inputs.items()} for number in range(4)]
    return {
        "ViltForQuestionAnswering": transformers.ViltForQuestionAnswering,
        "checkpoint": checkpoint(case.model, folder / "teacher"),
        "training_folder": str(folder / "training"),
        "questions": questions,
        "collate": transformers.default_data_collator,
        "folder": model,
        "store": folder / "store",
    }


def migration(folder: Path) -> dict[str, Any]:
    pruned = reader()
    for layer in vleff.lottery.prunable_linears(pruned).values():
        layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    return {
        "model": make_case(transformers.ViltForQuestionAnswering).model,
        "reader": reader(),
        "pruned": pruned,
    }


def cuda(folder: Path) -> dict[str, Any]:
    device = "cpu" if gpu_problem_here() else "cuda"
    case = make_case(transformers.BertModel)
    return {"model": case.model, "device": device, "inputs": {name: x.to(device) for name, x in case.inputs.items()}}


NAMES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "accelerate": accelerate,
    "cuda": cuda,
    "index": index,
    "attention-distillation": attention_distillation,
    "copy-attention": copy_attention,
    "head-masked-linear": head_masked_linear,
    "dide": dide_page,
    "migration": migration,
    "serving": serving,
    "tile-vqa": lambda folder: {},
}


@pytest.mark.parametrize("page", NAMES)
def test_examples_run(page: str, tmp_path: Path) -> None:
    names = {"torch": torch, "vleff": vleff} | NAMES[page](tmp_path)
    for example in PAGES[page]:
        exec(example.replace("/usr/share/datasets/fashion-mnist", str(write_small_clothes(tmp_path / "mnist"))), names)


def test_every_page_with_examples_is_run() -> None:
    assert {page for page, examples in PAGES.items() if examples} == NAMES.keys() | WITH_OWN_TESTS


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        text = re.sub(r"```.*?```|`[^`\n]*`|^    .*?$", "", page.read_text(), flags=re.S | re.M)
        for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built by pip install vleff[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    reference = (tmp_path / "site" / "api" / "ops" / "index.html").read_text()
    assert all(f"vleff.ops.{name}" in reference for name in vleff.ops.__all__)
