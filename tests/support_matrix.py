"""Writes docs/support.md: what is tested for which family, taken from the tests themselves.

    python tests/support_matrix.py

A test counts for a family if its name says what it tests and either its parameters name a model of the family or
its file is the family's own.
"""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "support.md"

# family -> what its models' names start with, and its own test files
FAMILIES = {
    "BERT": (("Bert",), ()),
    "RoBERTa, XLM-RoBERTa, CamemBERT": (("Roberta", "XLMRoberta", "Camembert"), ()),
    "DistilBERT": (("DistilBert",), ()),
    "MPNet": (("MPNet",), ()),
    "T5": (("T5",), ()),
    "BART": (("Bart",), ("test_bart",)),
    "ViT": (("ViT",), ()),
    "CLIP": (("CLIP",), ("test_clip",)),
    "SigLIP, SigLIP 2": (("Siglip",), ("test_siglip",)),
    "ViLT": (("Vilt",), ("test_vilt",)),
    "BLIP": (("BlipText", "BlipVision", "BlipModel", "BlipForI", "BlipForC", "BlipForQ"), ("test_blip",)),
    "BLIP for NLVR2": (("BlipForNLVR2",), ("test_blip_nlvr2",)),
    "BridgeTower": (("BridgeTower",), ("test_bridgetower",)),
    "METER": (("Meter",), ("test_meter",)),
}
# column -> words of which a test's name has one
COLUMNS = {
    "fp32": ("float32_outputs_agree",),
    "bf16": ("bfloat16_error",),
    "fp16": ("float16_runs_packed",),
    "autocast": ("autocast",),
    "gradients": ("gradient", "losses", "contrastive_training", "test_training["),
    "copied, pickled, saved": ("copies_are_accelerated", "loads_the_saved_model"),
    "torch.compile": ("compile", "one_graph", "test_vit["),
    "torch.export": ("export",),
    "generate": ("generates", "generate_the_same"),
}
INTRODUCTION = """# What is tested for which family

Made by `python tests/support_matrix.py` from the tests' names; do not edit by hand. A cell holds the number of tests.
An empty one says that nothing was tested, not that it fails. All on the CPU; float64 and other devices run as
transformers wrote them.

"""
REMARKS = """
In float16 BART and T5 run as transformers wrote them, with their clamps. Attention of MPNet and T5 runs padded.
`torch.compile` means `fullgraph=True`; except for ViT, whose images all have one size, the tests count one graph
whatever the token counts. BLIP obeys the mask of its cross attention, which transformers ignores; BridgeTower returns
attention weights only where they are asked for; SigLIP's text model reads the last position, padding or not. What else
is peculiar to a family stands in [accelerate.md](accelerate.md).
"""


def collected() -> list[str]:
    """The ids of all tests of models."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(TESTS / "models")]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=True).stdout.splitlines()
    return [line for line in lines if "::" in line]


def is_of_family(test: str, prefixes: tuple[str, ...], files: tuple[str, ...]) -> bool:
    file, _, name = test.rpartition("/")[2].partition(".py::")
    parameters = name.partition("[")[2].rstrip("]").split("-")
    return file in files or any(parameter.startswith(prefixes) for parameter in parameters)


def page(tests: list[str]) -> str:
    """The whole page."""
    rows = [("family", *COLUMNS), ("---", *["---"] * len(COLUMNS))]
    for family, (prefixes, files) in FAMILIES.items():
        own = [test for test in tests if is_of_family(test, prefixes, files)]
        counts = [
            sum(any(word in test.partition("::")[2] for word in words) for test in own) for words in COLUMNS.values()
        ]
        rows.append((family, *(str(count) if count else "" for count in counts)))
    return INTRODUCTION + "".join(f"| {' | '.join(row)} |\n" for row in rows) + REMARKS


if __name__ == "__main__":
    PAGE.write_text(page(collected()), encoding="utf-8")
