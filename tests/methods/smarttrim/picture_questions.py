"""A small ViLT in a folder, and questions about pictures in files."""

import json
from pathlib import Path

import torch
from data_vqa.small_clothes import write_small_clothes
from PIL import Image
from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor

from vleff import smarttrim
from vleff.data.fashion_mnist import read_fashion_mnist
from vleff.data.image_questions import Preprocessor
from vleff.data.tile_features import tile_tokenizer
from vleff.data.tile_vqa import ANSWERS, TileVqa

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
COUNT = 14


def write_questions(folder: Path, count: int = COUNT) -> Path:
    """Pictures and a file of questions about them."""
    questions = TileVqa(read_fashion_mnist(write_small_clothes(folder / "clothes")), count)
    rows = []
    for number, one in enumerate(questions):
        Image.fromarray(one.grid.picture).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": one.question, "answer": one.answer})
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def write_vilt(folder: Path, answers: tuple[str, ...] = ANSWERS) -> Path:
    """A checkpoint as ViLT's are, with random weights."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(answers)), "label2id": {name: number for number, name in enumerate(answers)}}
    settings = {**SIZES, "image_size": 112, "patch_size": 14, "vocab_size": 60, "max_image_length": -1, **labels}
    ViltForQuestionAnswering(ViltConfig(**settings)).save_pretrained(folder)
    processor = ViltImageProcessor(size={"shortest_edge": 112}, size_divisor=14)
    Preprocessor(tile_tokenizer(), processor).save_pretrained(folder)
    return folder


def write_trimmed(folder: Path, vilt: Path, random: bool = False) -> Path:
    """A model whose trimmers drop a good part, or which drops as much at random."""
    model = smarttrim.attach(ViltForQuestionAnswering.from_pretrained(vilt).eval())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in smarttrim.trimmer_parameters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if random:
        shares = {"vilt.encoder/tokens": {"tokens": [1.0, 0.5], "own": [1.0, 0.5]}}
        smarttrim.attach(smarttrim.detach(model), smarttrim.SmartTrimConfig(random_shares=shares))
    smarttrim.save_pretrained(model, folder)
    Preprocessor.from_pretrained(vilt).save_pretrained(folder)
    return folder
