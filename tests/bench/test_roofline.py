"""The roofline page is what its script writes, and the model obeys its own bounds."""

import runpy
from pathlib import Path

ROOFLINE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "roofline.py"))
A100, Work, works = ROOFLINE["DEVICES"][0], ROOFLINE["Work"], ROOFLINE["works"]


def test_the_page_is_the_scripts() -> None:
    assert ROOFLINE["PAGE"].read_text(encoding="utf-8") == ROOFLINE["page"]()


def test_the_bound_is_the_slower_of_both() -> None:
    assert Work("", 312e12, 0).seconds(A100, "bfloat16") == (1.0, "products")
    assert Work("", 0, 2.039e12).seconds(A100, "bfloat16") == (1.0, "memory")
    assert Work("", 52e12, 0).seconds(A100, "float32") == (1.0, "products")


def test_dropped_heads_are_not_counted() -> None:
    by_name = {work.call: work for work in works(2)}
    whole = next(work for name, work in by_name.items() if name.startswith("token_gather_attention"))
    assert by_name["… half of the heads"].operations * 2 == whole.operations
