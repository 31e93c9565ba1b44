"""FastAPI on uvicorn, with uvloop and httptools: one process a worker, the model in FastAPI's own pool of threads.

It forms no batches. ``option``: how many requests a process works on at once; empty: FastAPI's own 40.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from peer_servers.peer_model import PeerModel, read_settings

settings = read_settings()
models: list[PeerModel] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Load the model once, in each process."""
    models.append(PeerModel(settings))
    if settings.option:
        anyio.to_thread.current_default_thread_limiter().total_tokens = int(settings.option)
    yield


app = FastAPI(lifespan=lifespan)


def classify(body: bytes) -> dict[str, float]:
    """Answer one photo."""
    return models[0].classify([body])[0]


@app.post("/predict")
async def predict(request: Request) -> dict[str, float]:
    """Take the body as it is."""
    return await run_in_threadpool(classify, await request.body())


if __name__ == "__main__":
    uvicorn.run(
        "peer_servers.fastapi_server:app",
        host="127.0.0.1",
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
