"""Load on `embedding_server.py`: requests a second and how long they take, plain and accelerated, by waiting times.

    python examples/embedding_server_load.py MODEL

Clients ask again as soon as they have an answer, each time for one text: questions and paragraphs of SQuAD, of very
different lengths. All servers run from the beginning, one is loaded at a time, in turns.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vleff.bench.inputs import paragraphs, questions

SERVER = Path(__file__).with_name("embedding_server.py")


@dataclass
class Contender:
    """A server and what was measured of it.

    Attributes:
        name: in the table.
        options: of `embedding_server.py`.
        rates: requests a second by number of clients, one for each round.
        latencies: seconds by number of clients, of all requests.
    """

    name: str
    options: list[str]
    rates: dict[int, list[float]] = field(default_factory=dict)
    latencies: dict[int, list[float]] = field(default_factory=dict)


def contenders(waits: list[int]) -> list[Contender]:
    accelerated = [Contender(f"vleff, {wait} ms", ["--wait", str(wait)]) for wait in waits]
    return [Contender("plain", ["--plain"]), *accelerated]


@contextmanager
def server(model: str, options: list[str]) -> Iterator[str]:
    """Starts a server and waits until it answers; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVER), model, "--port", str(port), *options])
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server {' '.join(options)} did not start") from None
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def load(address: str, clients: int, seconds: float, texts: list[str]) -> tuple[float, list[float]]:
    """Requests a second, and the seconds that each took."""
    numbers = count()
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while (start := time.monotonic()) < end:
                client.post("/embed", json={"texts": [texts[next(numbers) % len(texts)]]}).raise_for_status()
                latencies.append(time.monotonic() - start)

    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        for one in [pool.submit(ask) for _ in range(clients)]:
            one.result()
    return len(latencies) / (time.monotonic() - start), latencies


def measure(
    model: str, options: list[str], waits: list[int], clients: list[int], rounds: int, seconds: float
) -> list[Contender]:
    """Loads each contender in each round."""
    texts = [text for pair in zip(questions(None), paragraphs(None), strict=False) for text in pair]
    compared = contenders(waits)
    with ExitStack() as stack:
        addresses = [stack.enter_context(server(model, options + contender.options)) for contender in compared]
        turns = [(number, index) for _ in range(rounds) for number in clients for index in range(len(compared))]
        for number, index in track(turns, "loading", transient=True):
            rate, latencies = load(addresses[index], number, seconds, texts)
            compared[index].rates.setdefault(number, []).append(rate)
            compared[index].latencies.setdefault(number, []).extend(latencies)
    return compared


def table(compared: list[Contender]) -> Table:
    """Medians of rounds; a ratio is that of requests a second to the first contender's, with the range of rounds."""
    result = Table("clients", "server", "requests/s", "ratio", "p50 ms", "p95 ms", "p99 ms")
    for number in compared[0].rates:
        for contender in compared:
            rates = contender.rates[number]
            ratios = [a / b for a, b in zip(rates, compared[0].rates[number], strict=True)]
            cuts = statistics.quantiles(contender.latencies[number], n=100)
            result.add_row(
                str(number),
                contender.name,
                f"{statistics.median(rates):.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                *(f"{1e3 * cuts[percent - 1]:.1f}" for percent in (50, 95, 99)),
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--waits", type=int, nargs="+", default=[0, 2, 5, 10], help="milliseconds")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round of one server")
    arguments = parser.parse_args()
    options = ["--dtype", arguments.dtype]
    compared = measure(
        arguments.model, options, arguments.waits, arguments.clients, arguments.rounds, arguments.seconds
    )
    Console().print(table(compared))


if __name__ == "__main__":
    main()
