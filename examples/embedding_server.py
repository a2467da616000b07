"""A server of sentence embeddings: an accelerated text encoder behind HTTP, with dynamic batches.

    pip install 'vleff[serve]'
    OMP_WAIT_POLICY=passive python examples/embedding_server.py MODEL
    curl localhost:8000/embed -H 'content-type: application/json' -d '{"texts": ["a question", "a longer text"]}'

MODEL is a text encoder of transformers with its tokenizer, a folder or a name on the hub. Texts that wait are embedded
together, whatever their lengths: an accelerated model spends nothing on padding, so that a batch is limited by its
tokens and not by its longest text. `embedding_server_load.py` measures it.
"""

import argparse
import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from transformers import AutoModel, AutoTokenizer

import vleff

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TokenIds = list[int]
Embedding = list[float]


class TooManyWaitingError(Exception):
    """More tokens wait already than a batcher takes."""


class Batcher:
    """Runs what waits together, one batch after the other, in a thread of its own.

    Args:
        run: results of a batch.
        max_tokens: of a batch; a single item may have more.
        max_waiting: tokens that may wait.
        wait: seconds that a batch waits for more items after its first one. While a batch runs, the next one gathers
            in any case.
    """

    def __init__(
        self,
        run: Callable[[Sequence[TokenIds]], Sequence[Embedding]],
        max_tokens: int,
        max_waiting: int,
        wait: float,
    ) -> None:
        self._run, self._max_tokens, self._max_waiting, self._wait = run, max_tokens, max_waiting, wait
        self._waiting: deque[tuple[TokenIds, asyncio.Future[Embedding]]] = deque()
        self._tokens_waiting = 0
        self._arrived = asyncio.Event()

    async def results(self, items: Sequence[TokenIds]) -> list[Embedding]:
        """The results of all items, or none of them is run.

        Raises:
            TooManyWaitingError: try again later.
        """
        tokens = sum(map(len, items))
        if self._tokens_waiting and self._tokens_waiting + tokens > self._max_waiting:
            raise TooManyWaitingError(f"{self._tokens_waiting} tokens wait already")
        futures: list[asyncio.Future[Embedding]] = [asyncio.get_running_loop().create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        self._tokens_waiting += tokens
        self._arrived.set()
        return list(await asyncio.gather(*futures))

    async def work(self) -> None:
        """Runs batches until it is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "batcher") as thread:
            while True:
                await self._arrived.wait()
                if self._wait and self._tokens_waiting < self._max_tokens:
                    await asyncio.sleep(self._wait)
                batch = self._take()
                if not batch:
                    continue
                try:
                    results = await loop.run_in_executor(thread, self._run, [item for item, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():  # else whoever asked has gone
                        future.set_result(result)

    def _take(self) -> list[tuple[TokenIds, asyncio.Future[Embedding]]]:
        batch, tokens = [], 0
        while self._waiting and (not batch or tokens + len(self._waiting[0][0]) <= self._max_tokens):
            item, future = self._waiting.popleft()
            self._tokens_waiting -= len(item)
            if not future.done():
                batch.append((item, future))
                tokens += len(item)
        if not self._waiting:
            self._arrived.clear()
        return batch


class Embedder:
    """Mean embeddings of length 1.

    Args:
        name: a text encoder of transformers with its tokenizer, a folder or a name on the hub.
        dtype: of the model.
        plain: without vleff, for comparisons.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, plain: bool = False) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name, dtype=dtype).eval()
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        if not plain:
            vleff.accelerate(self.model)

    def token_ids(self, texts: list[str]) -> list[TokenIds]:
        """Token ids of each text.

        Raises:
            ValueError: a text is empty or too long.
        """
        ids = self.tokenizer(texts, verbose=False)["input_ids"]
        for number, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
            if not text.strip():
                raise ValueError(f"texts[{number}]: expected a text, got an empty one")
            if len(tokens) > self.longest:
                raise ValueError(f"texts[{number}]: expected at most {self.longest} tokens, got {len(tokens)}")
        return ids

    def __call__(self, batch: Sequence[TokenIds]) -> list[Embedding]:
        inputs = self.tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt", verbose=False)
        with torch.inference_mode():
            hidden = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            means = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(means, dim=-1).tolist()


class Texts(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=256)


class Embeddings(BaseModel):
    embeddings: list[Embedding]
    tokens: int


def make_app(embedder: Embedder, wait: float = 0.0, max_tokens: int = 8192, max_waiting: int = 131072) -> FastAPI:
    """The server; arguments of `Batcher`."""
    batcher = Batcher(embedder, max_tokens, max_waiting, wait)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        embedder(embedder.token_ids(["warm"]))  # packs the weights, so that the first request does not wait for it
        work = asyncio.create_task(batcher.work())
        yield
        work.cancel()

    app = FastAPI(title="vleff embeddings", lifespan=lifespan)

    @app.post("/embed")
    async def embed(request: Texts) -> Embeddings:
        try:
            ids = embedder.token_ids(request.texts)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        try:
            return Embeddings(embeddings=await batcher.results(ids), tokens=sum(map(len, ids)))
        except TooManyWaitingError as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "longest": embedder.longest}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--wait", type=float, default=0.0, help="milliseconds that a batch waits for more texts")
    parser.add_argument("--max-tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--cores", help="the cores to run on, as 0,1,2; default all")
    parser.add_argument("--plain", action="store_true", help="without vleff, for comparisons")
    arguments = parser.parse_args()
    if arguments.cores:
        cores = {int(core) for core in arguments.cores.split(",")}
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
    embedder = Embedder(arguments.model, DTYPES[arguments.dtype], arguments.plain)
    app = make_app(embedder, arguments.wait / 1e3, arguments.max_tokens)
    uvicorn.run(app, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
