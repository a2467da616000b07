"""Measures and writes docs/results.md.

    python benchmarks/results.py              measures the sections that have no results yet
    python benchmarks/results.py attention    measures one section again
    python benchmarks/results.py attention-cuda    measures it on the GPU
    python benchmarks/results.py attention-amx     measures it on a processor with AMX

Each section takes about ten minutes on two cores, on a slow machine up to fifteen, and is written when it is finished,
to docs/results/<section>.json; the page is made from these files. Run it on a machine that does nothing else.
"""

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import vleff._library  # noqa: F401  registers torch.ops.vleff

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
FOLDER = ROOT / "docs" / "results"

DTYPES = ("fp32", "bf16")

# section -> what pytest runs
SECTIONS = {
    "attention": ["benchmarks/bench_token_gather_attention.py"],
    "accelerate-even-lengths": ["benchmarks/bench_accelerate.py", "-k", "even_lengths"],
    "accelerate-paragraphs": ["benchmarks/bench_accelerate.py", "-k", "paragraphs"],
    "accelerate-compiled": ["benchmarks/bench_accelerate.py", "-k", "compiled"],
    "accelerate-small": ["benchmarks/bench_accelerate.py", "-k", "batch_of_one or photos or peak_memory"],
    **{
        f"accelerate-vision-language-{part}": ["benchmarks/bench_vision_language.py", "-k", chosen]
        for part, chosen in {
            "8-fp32": "eight_pairs and fp32",
            "8-bf16": "eight_pairs and bf16",
            "1": "one_pair",
            "towers": "clip_vision or clip_text",
            "training": "fine_tuning",
        }.items()
    },
    "fused-linear": ["benchmarks/bench_fused_linear.py"],
    "masked-linear": ["benchmarks/bench_masked_linear.py", "-k", "one_core"],
    "masked-linear-more": ["benchmarks/bench_masked_linear.py", "-k", "two_cores or feed_forward"],
    "masked-linear-peers": ["benchmarks/bench_masked_linear.py", "-k", "peers or cusparse"],
    "head-masked-linear": ["benchmarks/bench_head_masked_linear.py"],
    "attention-distillation": ["benchmarks/bench_attention_distillation.py"],
    "copy-attention": ["benchmarks/bench_copy_attention.py"],
    "unanswerable": ["benchmarks/bench_unanswerable.py"],
    **{
        f"dide-{part.replace('_', '-')}-{dtype}": ["benchmarks/bench_dide.py", "-k", f"test_{part} and {dtype}"]
        for part in ("image_cached", "uncached", "both_cached", "one_against_many")
        for dtype in DTYPES
    },
    "dide-encoding": ["benchmarks/bench_dide.py", "-k", "encoding"],
    "dide-store": ["benchmarks/bench_dide.py", "-k", "million"],
    **{
        f"smarttrim-{part}-{dtype}": ["benchmarks/bench_smarttrim.py", "-k", f"({chosen}) and {dtype}"]
        for part, chosen in {
            "vilt": "test_trimmed and ViLT",
            "meter": "test_trimmed and METER and not 32]",
            "meter-32": "test_trimmed and METER and 32]",
            "parts": "uneven or half_of_the_heads or nothing_dropped or trimmers_alone",
            "training": "training_step",
        }.items()
        for dtype in DTYPES
    },
    "masked-reader": ["benchmarks/bench_masked_linear.py", "-k", "reader or training_step"],
}

# measured on the GPU when they are named
ON_GPU = (
    "attention",
    "masked-linear",
    "masked-linear-peers",
    "head-masked-linear",
    "attention-distillation",
    "copy-attention",
)
GPU_SECTIONS = {f"{name}-cuda": [*SECTIONS[name], "--device", "cuda"] for name in ON_GPU}
GPU_SECTIONS["accelerate-cuda"] = ["benchmarks/bench_accelerate_gpu.py", "--device", "cuda"]
# measured on a processor with AMX when they are named
ON_AMX = ("attention", "accelerate-even-lengths", "accelerate-paragraphs", "head-masked-linear")
AMX_SECTIONS = {f"{name}-amx": SECTIONS[name] for name in ON_AMX}
ALL_SECTIONS = SECTIONS | AMX_SECTIONS | GPU_SECTIONS

INTRODUCTION = """# Results

What was measured, against what the project set out to reach. Made by `python benchmarks/results.py` from
the files in `docs/results/`; do not edit by hand. The contenders take turns, round after round, on the same
threads and in the same dtype. A speedup is the ratio of medians; in brackets its 95 % interval (bootstrap
over rounds). A benchmark fails, and is only named here, if the outputs do not match. A target is reached if
the speedup is at least the target; "within noise" means that it is below, but the interval reaches it.

On a GPU a round of an op is a CUDA graph of 20 calls, and times are those of one call; whole models are timed call by
call, with what the host does.
"""


def main(sections: list[str]) -> None:
    """Measures sections and rewrites the page."""
    unknown = [section for section in sections if section not in ALL_SECTIONS]
    if unknown:
        raise SystemExit(f"unknown section {unknown[0]!r}: expected one of {', '.join(ALL_SECTIONS)}")
    if not AMX_SECTIONS.keys().isdisjoint(sections) and torch.ops.vleff.cpu_isa() != "amx_bf16":
        raise SystemExit(f"sections -amx need a processor with AMX, this one has {torch.ops.vleff.cpu_isa()}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for section in sections or [name for name in SECTIONS if not _file(name).exists()]:
        print(f"== {section}", flush=True)
        content = measure(section)
        _file(section).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    done = {name: json.loads(_file(name).read_text()) for name in ALL_SECTIONS if _file(name).exists()}
    PAGE.write_text(render(done), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def measure(section: str) -> dict[str, Any]:
    """Runs the benchmarks of a section; returns what is kept of them.

    Raises:
        SystemExit: a benchmark failed otherwise than by outputs that do not match, or all did.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, tests = Path(folder) / "report.json", Path(folder) / "tests.xml"
        arguments = [
            *ALL_SECTIONS[section],
            "--benchmark-only",
            f"--benchmark-json={report}",
            f"--junitxml={tests}",
            "-q",
        ]
        status = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT).returncode
        mismatches = _mismatches(tests) if status == 1 else []
        if status not in (0, 1) or mismatches is None or not report.read_bytes():
            raise SystemExit(f"section {section} failed; nothing of it was written")
        benchmarks = json.loads(report.read_text())["benchmarks"]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/results.py {section}",
        "benchmarks": [
            {"name": b["name"], "group": b["group"], "rounds": b["stats"]["rounds"], **b["extra_info"]}
            for b in benchmarks
        ],
        "mismatches": mismatches,
    }


def _mismatches(tests: Path) -> list[dict[str, str]] | None:
    """The benchmarks whose outputs do not match, and how far they are off; None if one failed otherwise."""
    found = []
    for case in ElementTree.parse(tests).iter("testcase"):
        if case.find("error") is not None:
            return None
        failure = case.find("failure")
        if failure is None:
            continue
        message = (
            failure.get("message", "").splitlines()[0].removeprefix("AssertionError: ").removeprefix("ValueError: ")
        )
        if not message.startswith("outputs differ"):
            return None
        found.append({"name": case.get("name", ""), "message": message})
    return found


def render(sections: dict[str, dict[str, Any]]) -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION]
    for name, section in sections.items():
        machine = next((b["machine"] for b in section["benchmarks"] if "machine" in b), {})
        parts.append(f"## {name.replace('-', ' ').capitalize()}\n")
        gpu = f"{machine['device']}, " if machine.get("device", "CPU") != "CPU" else ""
        parts.append(
            f"{section['date']}, {gpu}{machine.get('processor')}, {machine.get('threads')} threads, "
            f"{machine.get('instruction_set')}, torch {machine.get('torch')}, transformers "
            f"{machine.get('transformers')}. `{section['command']}`\n"
        )
        groups = dict.fromkeys(b["group"] for b in section["benchmarks"])
        for group in groups:
            members = [b for b in section["benchmarks"] if b["group"] == group]
            parts += [f"### {group}\n", _table(members)]
        for mismatch in section.get("mismatches", []):
            parts.append(f"Not measured: {_case(mismatch['name'])}: {mismatch['message']}\n")
    return "\n".join(parts)


def _table(benchmarks: list[dict[str, Any]]) -> str:
    if any("peak_memory" in benchmark for benchmark in benchmarks):
        header = ["case", "eager MB", "vleff MB", "ratio", "ratio above start", "target", "result"]
        return _markdown(header, (_memory_row(benchmark) for benchmark in benchmarks))
    header = ["case", "against", "its ms", "vleff ms", "vleff GF/s", "speedup", "rounds", "target", "result"]
    return _markdown(header, (row for benchmark in benchmarks for row in _rows(benchmark)))


def _rows(benchmark: dict[str, Any]) -> Iterable[list[str]]:
    if "most_milliseconds" in benchmark:
        yield _absolute_row(benchmark)
    for engine, result in benchmark.get("against", {}).items():
        rate = benchmark.get("gigaflops")
        yield [
            _case(benchmark["name"]),
            engine,
            f"{result['milliseconds']:.3g}",
            f"{benchmark['milliseconds']:.3g}",
            f"{rate:.0f}" if rate else "",
            f"**{result['speedup']:.2f}** ({result['low']:.2f}–{result['high']:.2f})",  # noqa: RUF001  en dash
            str(result["rounds"]),
            f"≥ {result['target']:.2f}" if result["target"] else "",
            _verdict(result),
        ]


def _absolute_row(benchmark: dict[str, Any]) -> list[str]:
    milliseconds, most = benchmark["milliseconds"], benchmark["most_milliseconds"]
    verdict = "reached" if milliseconds <= most else "**missed**"
    own = [_case(benchmark["name"]), "", "", f"{milliseconds:.3g}", "", "", str(benchmark["rounds"])]
    return [*own, f"≤ {most:.3g} ms", verdict]


def _memory_row(benchmark: dict[str, Any]) -> list[str]:
    memory = benchmark["peak_memory"]
    return [
        _case(benchmark["name"]),
        f"{memory['eager']['peak']:.0f}",
        f"{memory['vleff']['peak']:.0f}",
        f"**{memory['ratio']:.3f}**",
        f"{memory['ratio_above_start']:.3f}",
        f"≤ {memory['target']:.2f}",
        "reached" if memory["ratio"] <= memory["target"] else "**missed**",
    ]


def _verdict(result: dict[str, Any]) -> str:
    if not result["target"]:
        return ""
    if result["speedup"] >= result["target"]:
        return "reached"
    return "within noise" if result["high"] >= result["target"] else "**missed**"


def _case(name: str) -> str:
    """test_forward[8 x 269 tokens-fp32] -> fp32, 8 x 269 tokens"""
    parameters = name.partition("[")[2].rstrip("]").split("-")
    parameters.sort(key=lambda parameter: parameter not in DTYPES)  # stable: the dtype first
    return f"{parameters[0]}, {'-'.join(parameters[1:])}".rstrip(", ")


def _markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _file(section: str) -> Path:
    return FOLDER / f"{section}.json"


if __name__ == "__main__":
    main(sys.argv[1:])
