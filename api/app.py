"""The HTTP application: its middleware, its routes, and what they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api import errors, openapi
from api.answer_headers import EXPOSED, AnswerHeaders
from api.auth import RequireKey, bearer
from api.batches.clerk import Clerk
from api.body_limit import BodyLimit
from api.dependencies import Api
from api.errors import ErrorBody
from api.open_requests import OpenRequests, most_open_requests
from api.request_id import RequestId
from api.routes import adapters, dead_letters, files, health, hf, jobs, lanes, metrics, models
from api.routes import webhooks as webhook_endpoints
from api.routes.openai import batches, chat, completions, embeddings, fine_tuning, lora_adapters, responses, uploads
from api.webhooks import Webhooks
from tandem.api_keys import ApiKeys
from tandem.events import connect_async
from tandem.services import Services
from tandem.settings import ApiSettings

THREADS = 90
"""Requests that may wait for the queue's server at the same time. While it hangs, each takes a thread for a second;
with anyio's 40 the others would wait their turn for longer than they may. Below redis-py's 100 connections."""

DESCRIPTION = """\
Asynchronous inference and fine-tuning jobs. Submit a job, follow its events, fetch its result; or use the OpenAI
clients with `/v1` of this server as their base URL.

Every error has the body `{"error": {"message", "type", "param", "code"}}`; programs test `code`. Every answer has an
`x-request-id`.
"""


def create_app(settings: ApiSettings) -> FastAPI:
    """The application over one queue server. Raises ConfigurationError for a catalogue that cannot be read."""
    # Opened here and not in the lifespan, so that a bad setting is an error of the start and not of the server.
    # Nothing is connected yet.
    services = Services.connect(settings)
    keys = ApiKeys.load(settings)
    webhooks = Webhooks(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        events = connect_async(settings.redis_url)
        app.state.api = Api(settings, services, events, webhooks)
        try:
            async with webhooks.delivered(services), Clerk(services).at_work():
                yield
        finally:
            await events.aclose()
            services.jobs.close()

    # /docs with assets of our own: on a network without internet it would stay blank.
    app = FastAPIOffline(
        redoc_url=None,
        title="Tandem",
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        static_url="/docs-assets",
    )
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(RequireKey, keys=keys)
    # Before its key is looked at, so that a refusal costs next to nothing.
    app.add_middleware(OpenRequests, most=most_open_requests())
    app.add_middleware(RequestId)
    app.add_middleware(AnswerHeaders)
    if settings.cors_origins:
        # Outside of all that refuses: a browser's preflight shows no key, and its page is to read every error.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )

    v1 = APIRouter(
        prefix="/v1",
        dependencies=[Depends(bearer)],
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    for routes in (
        jobs,
        dead_letters,
        lanes,
        chat,
        completions,
        responses,
        embeddings,
        files,
        uploads,
        batches,
        fine_tuning,
        models,
        adapters,
        lora_adapters,
        webhook_endpoints,
    ):
        v1.include_router(routes.router)
    app.include_router(v1)
    app.include_router(
        hf.router,
        dependencies=[Depends(bearer)],
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.include_router(metrics.router)
    app.include_router(health.router)
    openapi.install(app)
    return app
