"""Whether every op computes what its formula says on this machine: `vleff doctor --self-test`."""

import time

from rich.console import Console

from vleff.self_test.cases import all_cases
from vleff.self_test.report import as_table, as_text
from vleff.self_test.running import run
from vleff.self_test.targets import find_targets


def self_test(console: Console) -> bool:
    """Runs all cases on the processor and the GPU, prints a table and a text for an issue.

    Returns:
        whether all results are within their bounds.
    """
    start = time.perf_counter()
    targets, gpu = find_targets()
    outcomes = []
    with console.status("Testing") as status:
        for outcome in run(all_cases(), targets):
            outcomes.append(outcome)
            status.update(f"Testing {outcome.op} on {outcome.target}")
    console.print(as_table(outcomes))
    text = as_text(outcomes, gpu, time.perf_counter() - start)
    console.print(f"\nFor an issue:\n\n{text}", markup=False, highlight=False, soft_wrap=True)
    return all(outcome.ok for outcome in outcomes)
