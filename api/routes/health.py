"""Whether the process lives, whether it can work, and where to go from `/`. No key is needed for these."""

import asyncio
import html
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import redis
from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from api.dependencies import Api, ApiDep

READY_SECONDS = 1.2
"""How long the queue's server may take to answer before this process counts as not ready: with what the way there and
back adds, whoever asks has an answer within 1.5 s."""
NOT_READY_STATUS = 503

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    reasons: list[str]
    """Why it is not ready."""


@router.get("/healthz")
async def is_alive() -> Health:
    """The process lives. Says nothing of what it depends on."""
    return Health()


@router.get("/readyz", responses={NOT_READY_STATUS: {"model": Readiness}})
async def is_ready(api: ApiDep, response: Response) -> Readiness:
    """The queue's server answers, and keeps what it acknowledges."""
    reasons = await _reasons(api)
    if reasons:
        response.status_code = NOT_READY_STATUS
    return Readiness(status="not ready" if reasons else "ready", reasons=reasons)


async def _reasons(api: Api) -> list[str]:
    try:
        async with asyncio.timeout(READY_SECONDS):
            info = await api.events.info("persistence", "memory")
    except TimeoutError:
        return [f"the queue's Redis server did not answer within {READY_SECONDS:g} s: is it frozen? look at its host"]
    except redis.RedisError as error:
        return [f"the queue's Redis server does not answer: {error}; start it, or correct TANDEM_REDIS_URL"]
    return list(shortcomings(info, ephemeral=api.settings.ephemeral))


def shortcomings(info: Mapping[str, Any], *, ephemeral: bool) -> Iterator[str]:
    """Why a server cannot be trusted with jobs, each with the fix.

    `info` are the sections `persistence` and `memory` of its INFO. `ephemeral`: jobs may be lost when it restarts, so
    it needs no append-only file.
    """
    if info["loading"]:
        left = f", for about {info['loading_eta_seconds']} s more" if "loading_eta_seconds" in info else ""
        yield f"the queue's Redis server is still loading its data{left}: wait"
    if not info["aof_enabled"] and not ephemeral:
        yield (
            "the queue's Redis server would lose jobs when it restarts: set `appendonly yes` there, "
            "or TANDEM_EPHEMERAL=true here if they may be lost"
        )
    # Redis refuses all writes from then on, so an ephemeral queue is no use either.
    if info["aof_last_write_status"] != "ok":
        yield (
            "the queue's Redis server cannot write its append-only file, so it takes no jobs: "
            "look into its log, and make room on its disk"
        )
    if info["maxmemory_policy"] != "noeviction":
        yield (
            f"the queue's Redis server deletes keys when its memory is full (maxmemory-policy is "
            f"{info['maxmemory_policy']}): set `maxmemory-policy noeviction`"
        )


@router.get("/", include_in_schema=False)
async def landing_page(api: ApiDep) -> HTMLResponse:
    flower = api.settings.flower_url
    watch = "" if flower is None else f'<li><a href="{html.escape(flower)}">Flower</a>: jobs as they run</li>'
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Tandem</title>"
        "<h1>Tandem</h1><p>Asynchronous inference and fine-tuning jobs on GPUs that you own.</p>"
        f'<ul><li><a href="/docs">API reference</a></li>{watch}<li><a href="/readyz">Readiness</a></li></ul>'
    )
