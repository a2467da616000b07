"""Training as people do it: checkpointing, adapters, Trainer, two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_cases import make_case
from peft import LoraConfig, get_peft_model
from transformers import (
    BertForSequenceClassification,
    CLIPTextModel,
    DistilBertModel,
    MPNetModel,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
    ViTModel,
)

import vleff
from vleff.nn import FusedLinear


def largest(tensor):
    return tensor.abs().max().item()


def gradients(case, model):
    model.train()
    case.tokens(model(**case.inputs).last_hidden_state).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("model_class", [DistilBertModel, CLIPTextModel, T5EncoderModel])
def test_gradient_checkpointing(model_class, reentrant):
    none = {"dropout_rate": 0.0} if model_class is T5EncoderModel else {"attention_dropout": 0.0}
    if model_class is DistilBertModel:
        none |= {"dropout": 0.0}
    case = make_case(model_class, **none)
    expected = gradients(case, case.plain())
    model = vleff.accelerate(case.model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # its inputs have to require gradients
        model.enable_input_require_grads()
    actual = gradients(case, model)
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, atol=1e-6, rtol=1e-4)


ADAPTED = {
    DistilBertModel: ["q_lin", "v_lin"],
    ViTModel: ["q_proj", "v_proj"],
    MPNetModel: ["q", "v", "o"],
}


@pytest.mark.parametrize("first", ["adapters", "accelerate"])
@pytest.mark.parametrize("model_class", ADAPTED)
def test_lora_adapters(model_class, first):
    case = make_case(model_class)
    config = LoraConfig(r=4, target_modules=ADAPTED[model_class], init_lora_weights=False)
    torch.manual_seed(0)
    plain = get_peft_model(case.plain(), config).eval()
    torch.manual_seed(0)
    if first == "adapters":
        model = get_peft_model(case.model, config).eval()
        vleff.accelerate(model)
    else:
        model = get_peft_model(vleff.accelerate(case.model), config).eval()
    model.load_state_dict(plain.state_dict())
    expected = case.tokens(case.call(plain).last_hidden_state)
    assert largest(case.tokens(case.call(model).last_hidden_state) - expected) <= 2e-6 * largest(expected)

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    case.tokens(model(**case.inputs).last_hidden_state).square().mean().backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("lora_" in name for name in changed)

    adapted = case.tokens(case.call(model).last_hidden_state)
    merged = model.merge_and_unload()
    assert largest(case.tokens(case.call(merged).last_hidden_state) - adapted) <= 1e-5 * largest(adapted)
    assert any(isinstance(module, FusedLinear) for module in merged.modules())


def test_trainer(tmp_path):
    case = make_case(BertForSequenceClassification, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [{name: x[i] for name, x in case.inputs.items()} | {"labels": torch.tensor(i % 2)} for i in range(4)] * 3
    losses = []
    for model in (case.plain(), vleff.accelerate(case.model)):
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=4, logging_steps=1, report_to=[], use_cpu=True
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 4
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), atol=1e-4, rtol=1e-4)


SCRIPT = """
import torch, torch.distributed as dist
from model_cases import make_case
from torch.nn.parallel import DistributedDataParallel
from transformers import {name}
import vleff
dist.init_process_group("gloo")
torch.set_num_threads(1)
case = make_case({name}, {config})
model = vleff.accelerate(case.model)
valid = case.tokens

def gradients(model, rows):
    model.zero_grad()
    inputs = {{name: x[rows] for name, x in case.inputs.items()}}
    model(**inputs).last_hidden_state.square().sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

whole = gradients(model, slice(0, 4))
rank = dist.get_rank()
parallel = DistributedDataParallel(model, find_unused_parameters=True)
for actual, expected in zip(gradients(parallel, slice(2 * rank, 2 * rank + 2)), whole, strict=True):
    torch.testing.assert_close(2 * actual, expected, atol=1e-4 * float(expected.abs().max()) + 1e-6, rtol=1e-4)
print("equal", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("model_class", [DistilBertModel, CLIPTextModel, ViTModel])
def test_two_processes_have_the_gradients_of_one(model_class, tmp_path):
    config = "dropout=0.0, attention_dropout=0.0" if model_class is DistilBertModel else ""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(name=model_class.__name__, config=config))
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    paths = [str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("equal") == 2
