"""`import vleff` is quick: adapters, kernels and transformers load when they are first used."""

import os
import subprocess
import sys

TIMED = "import time, torch; start = time.process_time(); import vleff; print(time.process_time() - start)"
RUNS = 7
MOST_SECONDS = 0.05


def run(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout


def test_import_adds_less_than_50_milliseconds_to_that_of_torch() -> None:
    assert min(float(run(TIMED)) for _ in range(RUNS)) < MOST_SECONDS


def test_import_loads_neither_torch_nor_transformers() -> None:
    loaded = run("import sys, vleff; print(*(name for name in sys.modules if not name.startswith('_')))").split()
    assert "vleff" in loaded
    assert not {"torch", "transformers", "vleff.acceleration", "vleff.models"} & set(loaded)


def test_one_family_does_not_load_the_others() -> None:
    code = """
import sys, transformers, vleff
config = transformers.BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)
vleff.accelerate(transformers.BertModel(config))
print(*(name for name in sys.modules if name.startswith(("vleff.models.", "transformers.models."))))
"""
    loaded = run(code).split()
    assert "vleff.models.bert" in loaded
    assert not {"vleff.models.vit", "vleff.models.roberta", "transformers.models.vit.modeling_vit"} & set(loaded)
