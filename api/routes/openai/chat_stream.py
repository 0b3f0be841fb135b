"""OpenAI's streamed chat answer: the chunks of one job's text, as server-sent events."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from sse_starlette import ServerSentEvent

from api.errors import error_body
from api.routes.openai.chat_answer import ChoiceLogprobs, FinishReason, completion_id, is_none, texts_of
from api.routes.openai.chat_request import ChatRequest, ServedTier
from api.routes.openai.field_names import renamed
from api.routes.openai.fingerprint import system_fingerprint
from api.routes.openai.streamed_choice import NewCall, NewText, StreamedChoice
from api.routes.openai.usage import Usage
from api.waiting import Waiting
from tandem.errors import TandemError
from tandem.job import Job, JobEvent


class DeltaFunction(BaseModel):
    name: Annotated[str | None, Field(exclude_if=is_none)] = None
    arguments: str


class DeltaToolCall(BaseModel):
    """The first of a call has its id, type and name; the others have the next pieces of its arguments."""

    index: int
    id: Annotated[str | None, Field(exclude_if=is_none)] = None
    type: Annotated[Literal["function"] | None, Field(exclude_if=is_none)] = None
    function: DeltaFunction


class Delta(BaseModel):
    role: Annotated[Literal["assistant"] | None, Field(exclude_if=is_none)] = None
    content: Annotated[str | None, Field(exclude_if=is_none)] = None
    tool_calls: Annotated[list[DeltaToolCall] | None, Field(exclude_if=is_none)] = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    """In the last chunk, if it was asked for; then all others have it as null."""
    service_tier: ServedTier | None = None
    system_fingerprint: str


class ChatStream:
    """One answer, of one or several choices, in chunks."""

    def __init__(self, body: ChatRequest, job: Job) -> None:
        self._body = body
        self._job = job
        self._choices = [StreamedChoice() for _ in range(body.n)]

    async def sent(
        self, first: JobEvent | None, rest: AsyncIterator[JobEvent], waiting: Waiting
    ) -> AsyncIterator[ServerSentEvent]:
        """The chunks; an error after the first of them is an event too, since the status is sent."""
        async with waiting.cancelled_if_abandoned():
            try:
                for index in range(self._body.n):
                    yield self._chunk(index, Delta(role="assistant", content=""))
                if first is not None:
                    for chunk in self._new(first):
                        yield chunk
                    async for event in rest:
                        for chunk in self._new(event):
                            yield chunk
                result = (await waiting.result()).result
                for index, text in enumerate(texts_of(result)):
                    for new in self._choices[index].finish(text):
                        yield self._told(index, new)
            except TandemError as error:
                yield ServerSentEvent(error_body(renamed(error, "messages")).model_dump_json(), sep="\n")
                return
            for index, text in enumerate(texts_of(result)):
                yield self._chunk(index, Delta(), finish_reason=text["finish_reason"])
            if self._body.includes_usage:
                yield self._event([], Usage.of(result))
            yield ServerSentEvent("[DONE]", sep="\n")

    def _new(self, event: JobEvent) -> Iterator[ServerSentEvent]:
        """What an event of the job adds."""
        index = event.data.get("index", 0)  # a job of one text does not number it
        new: NewText | NewCall | None = None
        match event.type:
            case "tokens":
                new = self._choices[index].add_text(event.data)
            case "tool_call":
                new = self._choices[index].add_call(event.data)
            case "state" if event.data["state"] == "running":
                for choice in self._choices:
                    choice.restart()
        if new is not None:
            yield self._told(index, new)

    def _told(self, index: int, new: NewText | NewCall) -> ServerSentEvent:
        if isinstance(new, NewText):
            logprobs = None if new.logprobs is None else ChoiceLogprobs.model_validate({"content": new.logprobs})
            return self._chunk(index, Delta(content=new.text), logprobs=logprobs)
        call = DeltaToolCall(
            index=new.call,
            id=new.id,
            type=None if new.id is None else "function",
            function=DeltaFunction(name=new.name, arguments=new.arguments),
        )
        return self._chunk(index, Delta(tool_calls=[call]))

    def _chunk(
        self,
        index: int,
        delta: Delta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: FinishReason | None = None,
    ) -> ServerSentEvent:
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return self._event([choice], None)

    def _event(self, choices: list[ChunkChoice], usage: Usage | None) -> ServerSentEvent:
        chunk = ChatChunk(
            id=completion_id(self._job.id),
            created=int(self._job.created_at),
            model=self._body.model,
            choices=choices,
            usage=usage,
            service_tier=self._body.served_tier,
            system_fingerprint=system_fingerprint(self._body.model),
        )
        left_out = None if self._body.includes_usage else {"usage"}
        return ServerSentEvent(chunk.model_dump_json(exclude=left_out), sep="\n")
