"""Whether the process lives, whether it can work, and where to go from `/`. No key is needed for these."""

import asyncio
import html
from typing import Literal

import redis
from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from api.dependencies import Api, ApiDep

READY_SECONDS = 2.0
"""How long the queue's server may take to answer before this process counts as not ready."""
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
    """The queue's server answers, and keeps what it acknowledges (its append-only file is on)."""
    reasons = await _reasons(api)
    if reasons:
        response.status_code = NOT_READY_STATUS
    return Readiness(status="not ready" if reasons else "ready", reasons=reasons)


async def _reasons(api: Api) -> list[str]:
    try:
        async with asyncio.timeout(READY_SECONDS):
            persistence = await api.events.info("persistence")
    except TimeoutError:
        return [f"the queue's Redis server did not answer within {READY_SECONDS:g} s"]
    except redis.RedisError as error:
        return [f"the queue's Redis server does not answer: {error}"]
    if not persistence["aof_enabled"]:
        return ["the queue's Redis server would lose jobs when it restarts: set `appendonly yes`"]
    return []


@router.get("/", include_in_schema=False)
async def landing_page(api: ApiDep) -> HTMLResponse:
    flower = api.settings.flower_url
    watch = "" if flower is None else f'<li><a href="{html.escape(flower)}">Flower</a>: jobs as they run</li>'
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Tandem</title>"
        "<h1>Tandem</h1><p>Asynchronous inference and fine-tuning jobs on GPUs that you own.</p>"
        f'<ul><li><a href="/docs">API reference</a></li>{watch}<li><a href="/readyz">Readiness</a></li></ul>'
    )
