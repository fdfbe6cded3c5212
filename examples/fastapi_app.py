"""A FastAPI app that hands work to tasks, with a worker in its lifespan.

Run:  python examples/fastapi_app.py

The worker of a small site may run in the web process, as here. Otherwise, start it as a
process of its own:
liteq -A examples/fastapi_app.py worker

Prints:
    POST /reports -> 202
    GET /reports/… -> report of 3 pages
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from liteq import Liteq

tasks = Liteq("api")


@tasks.task(autoretry_for=(ConnectionError,), retry_backoff=True)
async def report(pages: int) -> str:
    for _ in range(pages):
        await asyncio.sleep(0.01)  # the work
    return f"report of {pages} pages"


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    with tasks.worker(concurrency=2):
        yield


api = FastAPI(lifespan=lifespan)


@api.post("/reports", status_code=202)
async def order(pages: int) -> str:
    result = await report.adelay(pages)  # was: background_tasks.add_task(report, pages)
    return result.id


@api.get("/reports/{id}")
async def wait_for(id: str) -> str:
    result: str = await tasks.AsyncResult(id).aget(timeout=10)
    return result


if __name__ == "__main__":
    from fastapi.testclient import TestClient

    with TestClient(api) as client:
        answer = client.post("/reports?pages=3")
        print("POST /reports ->", answer.status_code)
        print("GET /reports/… ->", client.get(f"/reports/{answer.json()}").json())
