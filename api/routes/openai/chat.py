"""`POST /v1/chat/completions`: a text-generation job, waited for or streamed."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.dependencies import ApiDep, SubmitterDep
from api.errors import error_body
from api.routes.jobs import HEARTBEAT_SECONDS
from api.routes.openai.chat_request import ChatRequest, ServedTier
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.routes.openai.streamed_text import StreamedText
from api.waiting import Waiting, while_connected
from tandem.errors import TandemError
from tandem.job import Job, JobEvent

router = APIRouter(tags=["openai"])

FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason

    @classmethod
    def of(cls, index: int, text: dict[str, Any]) -> "Choice":
        """One text of a job's result."""
        logprobs = text.get("logprobs")
        return cls(
            index=index,
            message=AnswerMessage(content=text["generated_text"]),
            logprobs=None if logprobs is None else ChoiceLogprobs(content=logprobs),
            finish_reason=text["finish_reason"],
        )


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Usage":
        prompt, completion = result["prompt_tokens"], result["completion_tokens"]
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: ServedTier | None = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    service_tier: ServedTier | None = None


@router.post("/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> ChatCompletion | Response:
    """Answer a conversation; with `stream: true` as server-sent events that end in `data: [DONE]`.

    The job behind it is named in the `x-tandem-job` header. A client that leaves cancels the job, unless it sent an
    `Idempotency-Key` to come back with. `temperature` is 1 by default, as OpenAI documents it.

    How urgent it is says `service_tier` (`flex` is low, `priority` is high) or, before that, `x-tandem-priority`.
    """
    submitted = await run_in_threadpool(submitter.submit, scheduling.on(body.spec()))
    waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
    if body.stream:
        return await _streamed(body, request, waiting, submitted.job)
    response.headers[JOB_HEADER] = submitted.job.id
    async with waiting.cancelled_if_abandoned():
        job = await while_connected(request, waiting.end())
    return ChatCompletion(
        id=_completion_id(job),
        created=int(job.created_at),
        model=body.model,
        choices=[Choice.of(index, text) for index, text in enumerate(_texts(job.result))],
        usage=Usage.of(job.result),
        service_tier=body.served_tier,
    )


async def _streamed(body: ChatRequest, request: Request, waiting: Waiting, job: Job) -> Response:
    """The stream, opened at the first text: a job that fails before any is answered with its error's status."""
    events = waiting.events()
    async with waiting.cancelled_if_abandoned():
        first = await while_connected(request, _first_text(events, waiting))
    stream = ChatStream(body, job)
    return EventSourceResponse(
        stream.sent(first, events, waiting), ping=HEARTBEAT_SECONDS, sep="\n", headers={JOB_HEADER: job.id}
    )


async def _first_text(events: AsyncIterator[JobEvent], waiting: Waiting) -> JobEvent | None:
    """The first `tokens` event; None if the job has succeeded without one. Raises what it failed with."""
    async for event in events:
        if event.type == "tokens":
            return event
    await waiting.result()
    return None


class ChatStream:
    """One answer, of one or several choices, in chunks."""

    def __init__(self, body: ChatRequest, job: Job) -> None:
        self._body = body
        self._job = job
        self._texts = [StreamedText() for _ in range(body.n)]

    async def sent(
        self, first: JobEvent | None, rest: AsyncIterator[JobEvent], waiting: Waiting
    ) -> AsyncIterator[ServerSentEvent]:
        """The chunks; an error after the first of them is an event too, since the status is sent."""
        async with waiting.cancelled_if_abandoned():
            try:
                for index in range(self._body.n):
                    yield self._chunk(index, Delta(role="assistant", content=""))
                if first is not None:
                    for chunk in self._new_text(first):
                        yield chunk
                    async for event in rest:
                        for chunk in self._new_text(event):
                            yield chunk
                result = (await waiting.result()).result
                for index, text in enumerate(_texts(result)):
                    if piece := self._texts[index].finish(text["generated_text"]):
                        yield self._chunk(index, Delta(content=piece))
            except TandemError as error:
                yield ServerSentEvent(error_body(error).model_dump_json(), sep="\n")
                return
            for index, text in enumerate(_texts(result)):
                yield self._chunk(index, Delta(), text["finish_reason"])
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                yield self._event([], Usage.of(result))
            yield ServerSentEvent("[DONE]", sep="\n")

    def _new_text(self, event: JobEvent) -> Iterator[ServerSentEvent]:
        if event.type == "tokens":
            index = event.data.get("index", 0)  # a job of one text does not number it
            if piece := self._texts[index].add(event.data["text"]):
                yield self._chunk(index, Delta(content=piece))
        if event.type == "state" and event.data["state"] == "running":
            for text in self._texts:
                text.restart()

    def _chunk(self, index: int, delta: Delta, finish_reason: FinishReason | None = None) -> ServerSentEvent:
        return self._event([ChunkChoice(index=index, delta=delta, finish_reason=finish_reason)], None)

    def _event(self, choices: list[ChunkChoice], usage: Usage | None) -> ServerSentEvent:
        chunk = ChatChunk(
            id=_completion_id(self._job),
            created=int(self._job.created_at),
            model=self._body.model,
            choices=choices,
            usage=usage,
            service_tier=self._body.served_tier,
        )
        return ServerSentEvent(chunk.model_dump_json(), sep="\n")


def _texts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The texts of a job's result: several are its `choices`, one is the result itself."""
    texts: list[dict[str, Any]] = result.get("choices", [result])
    return texts


def _completion_id(job: Job) -> str:
    return f"chatcmpl-{job.id}"
