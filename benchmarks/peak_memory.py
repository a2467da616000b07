"""Prints the peak resident memory, in megabytes, of a process that runs BERT-base on 32 real paragraphs.

python -m benchmarks.peak_memory float32|bfloat16 eager|vleff
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import vleff
import vleff._library  # loaded in both cases, so that the processes differ by the computation only
from vleff.bench.inputs import bert_token_ids, text_samples


def megabytes(field: str) -> float:
    """A field of /proc/self/status: "VmRSS" is resident now, "VmHWM" at most so far.

    The latter starts anew with the process; `resource.getrusage` would begin with the memory of the parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no field {field}")


def peak_above_start(function: Callable[[], object]) -> float:
    """The most memory, in megabytes, that calls of the function take above what is resident before the first."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    start = megabytes("VmRSS")
    for _ in range(3):
        function()
    return megabytes("VmHWM") - start


def main() -> None:
    """Runs the batch three times: kernels may set up their memory at the first run."""
    dtype, engine = sys.argv[1:]
    batch = text_samples(bert_token_ids(), "SQuAD paragraphs", padding=0).batches(32)[0]
    torch.manual_seed(0)
    start = megabytes("VmRSS")
    model = transformers.AutoModel.from_config(transformers.BertConfig(), dtype=getattr(torch, dtype)).eval()
    if engine == "vleff":
        vleff.accelerate(model)
    with torch.inference_mode():
        for _ in range(3):
            model(**batch.inputs)
    print(json.dumps({"start": start, "peak": megabytes("VmHWM")}))


if __name__ == "__main__":
    main()
