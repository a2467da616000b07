"""Mixed requests for many minutes: memory stays flat. soak.py [--minutes 30]

An accelerated reader, one whose linear layers are sparse, a trimmed vision-language model and CLIP answer, in random
order, batches of random size and length, from two threads. Once all kinds of request have come, for each of which
oneDNN keeps kernels, the resident memory may not grow further than by what allocators keep.
"""

import argparse
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from methods.smarttrim.families import stir
from methods.test_composition import sparse
from model_cases import make_case
from transformers import BertForQuestionAnswering, CLIPModel, ViltForQuestionAnswering

import vleff
from vleff import smarttrim

ALLOWED = 64 << 20  # bytes
WARM_SHARE = 1 / 3  # of the time
THREADS = 2


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def models() -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Models with a batch of inputs each."""
    kinds = {
        BertForQuestionAnswering: [vleff.accelerate, lambda model: vleff.accelerate(sparse(model))],
        CLIPModel: [vleff.accelerate],
        ViltForQuestionAnswering: [lambda model: stir(smarttrim.attach(model)).eval()],
    }
    cases = [(make_case(kind), prepare) for kind, prepares in kinds.items() for prepare in prepares]
    return [(prepare(case.model), case.inputs) for case, prepare in cases]


def request(inputs: dict[str, torch.Tensor], draw: random.Random) -> dict[str, torch.Tensor]:
    """A batch of samples drawn from the inputs, with texts cut to a length."""
    rows = torch.tensor(draw.choices(range(len(inputs["input_ids"])), k=draw.randint(1, 12)))
    length = draw.randint(1, inputs["input_ids"].shape[1])
    made = {name: value[rows] for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name in made and inputs.get("pixel_values") is None:
            made[name] = made[name][:, :length]
    return made


def soak(seconds: float, kinds: int) -> tuple[int, int, int]:
    """The number of requests, and the memory in bytes after the warm-up and the most after that.

    Args:
        kinds: how many different requests there are.
    """
    served, draw = models(), random.Random(0)
    chosen = [draw.choice(served) for _ in range(kinds)]
    asked = [(model, request(inputs, draw)) for model, inputs in chosen]
    start = time.monotonic()
    lock = threading.Lock()
    requests, warm, most = 0, 0, 0

    def answer(number: int) -> None:
        nonlocal requests, warm, most
        own_draw = random.Random(number)
        while (passed := time.monotonic() - start) < seconds:
            model, inputs = own_draw.choice(asked)
            with torch.inference_mode():
                model(**inputs)
            with lock:
                requests += 1
                if passed < WARM_SHARE * seconds:
                    warm = max(warm, resident_bytes())
                else:
                    most = max(most, resident_bytes())

    with ThreadPoolExecutor(THREADS) as pool:
        for one in [pool.submit(answer, number) for number in range(THREADS)]:
            one.result()
    return requests, warm, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    requests, warm, most = soak(60 * parser.parse_args().minutes, kinds=2000)
    grown = most - warm
    print(f"{requests:,} requests; {warm >> 20} MB after the warm-up, {most >> 20} MB at most later")
    if grown > ALLOWED:
        raise SystemExit(f"memory grew by {grown >> 20} MB, more than {ALLOWED >> 20}")


if __name__ == "__main__":
    main()
