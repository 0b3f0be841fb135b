"""OpenAI's streamed response: typed, numbered events made of one job's events.

The same job's events make the same stream each time, so that a client can go on after any number that it has read.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from sse_starlette import ServerSentEvent

from api.errors import error_type
from api.routes.openai.chat_answer import texts_of
from api.routes.openai.field_names import renamed
from api.routes.openai.response_answer import (
    ResponseView,
    call_item_id,
    has_message,
    logprob_view,
    message_id,
    output_items,
    response_of,
)
from api.routes.openai.response_items import CallView, OutputItemView, OutputMessageView, OutputTextView
from api.routes.openai.response_request import FIELD_NAMES, ResponseRequest
from api.routes.openai.streamed_choice import NewCall, NewText, StreamedChoice
from api.waiting import Waiting
from tandem.errors import TandemError, WorkerLost
from tandem.job import Job, JobEvent
from tandem.responses import RESPONSE, ResponseStatus, response_id

TEXT_PART = 0
"""`content_index`: a message has one part."""
BEFORE_THE_FIRST = -1

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an item stands in the output: as many began before it."""

    id: str
    number: int

    @property
    def named(self) -> Event:
        return {"item_id": self.id, "output_index": self.number}


class ResponseStream:
    """The events of one response, from its beginning."""

    def __init__(self, request: ResponseRequest, job: Job) -> None:
        self._request = request
        self._job = job
        self._id = response_id(job.id)
        self._hex_id = self._id.removeprefix(RESPONSE)
        self._number = 0
        self._is_in_progress = False
        self._written = StreamedChoice()
        self._blank = NewText("", [])
        """White space at the beginning: it is not sent before it is known whether the model says something."""
        self._places: dict[str, _Place] = {}
        """Of the items that have begun, by their ids."""

    async def sent(
        self, events: AsyncIterator[JobEvent], waiting: Waiting, *, starting_after: int = BEFORE_THE_FIRST
    ) -> AsyncIterator[ServerSentEvent]:
        """The events of a higher number than `starting_after`. What breaks the stream off is an `error` event."""
        async for event in self._events(events, waiting):
            if event["sequence_number"] > starting_after:
                yield ServerSentEvent(to_json(event).decode(), event=event["type"], sep="\n")

    async def _events(self, events: AsyncIterator[JobEvent], waiting: Waiting) -> AsyncIterator[Event]:
        try:
            for told in self._beginning():
                yield told
            async for event in events:
                for told in self._of(event):
                    yield told
            for told in self._ending(await waiting.job()):
                yield told
        except TandemError as error:
            error = renamed(error, "input", FIELD_NAMES)
            told = {"code": error.code, "message": error.message, "param": error.param}
            # OpenAI has the fields in the event itself, Open Responses in an object of it.
            yield self._event("error", **told, error={"type": error_type(error.status), **told})

    def _event(self, type: str, **fields: Any) -> Event:  # noqa: A002 - OpenAI's name
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _begun(self, status: ResponseStatus) -> ResponseView:
        return ResponseView.begun(self._request, id=self._id, created=self._job.created_at, status=status)

    def _beginning(self) -> Iterator[Event]:
        if self._request.background:
            yield self._event("response.created", response=self._begun("queued"))
            yield self._event("response.queued", response=self._begun("queued"))
        else:
            yield self._event("response.created", response=self._begun("in_progress"))
            yield from self._in_progress()

    def _in_progress(self) -> Iterator[Event]:
        if not self._is_in_progress:
            self._is_in_progress = True
            yield self._event("response.in_progress", response=self._begun("in_progress"))

    def _of(self, event: JobEvent) -> Iterator[Event]:
        """What one event of the job adds."""
        match event.type:
            case "state" if event.data["state"] == "running":
                yield from self._in_progress()
                self._written.restart()
            case "tokens":
                if (text := self._written.add_text(event.data)) is not None:
                    yield from self._say(text)
            case "tool_call":
                if (call := self._written.add_call(event.data)) is not None:
                    yield from self._call(call)

    def _say(self, new: NewText) -> Iterator[Event]:
        if message_id(self._hex_id) not in self._places:
            new = NewText(self._blank.text + new.text, [*(self._blank.logprobs or ()), *(new.logprobs or ())])
            if not new.text.strip():
                self._blank = new
                return
            yield from self._open_message()
        yield from self._text_delta(new)

    def _open_message(self) -> Iterator[Event]:
        place = self._begin(message_id(self._hex_id))
        item = OutputMessageView(id=place.id, status="in_progress", content=[])
        yield self._event("response.output_item.added", output_index=place.number, item=item)
        part = OutputTextView(text="")
        yield self._event("response.content_part.added", **place.named, content_index=TEXT_PART, part=part)

    def _text_delta(self, new: NewText) -> Iterator[Event]:
        if new.text or new.logprobs:
            yield self._event(
                "response.output_text.delta",
                **self._places[message_id(self._hex_id)].named,
                content_index=TEXT_PART,
                delta=new.text,
                logprobs=[logprob_view(told) for told in new.logprobs or ()],
            )

    def _call(self, new: NewCall) -> Iterator[Event]:
        item_id = call_item_id(self._hex_id, new.call)
        if new.id is not None and new.name is not None:
            place = self._begin(item_id)
            item = CallView(id=item_id, status="in_progress", call_id=new.id, name=new.name, arguments="")
            yield self._event("response.output_item.added", output_index=place.number, item=item)
        if new.arguments:
            named = self._places[item_id].named
            yield self._event("response.function_call_arguments.delta", **named, delta=new.arguments)

    def _begin(self, item_id: str) -> _Place:
        self._places[item_id] = place = _Place(item_id, len(self._places))
        return place

    def _ending(self, job: Job) -> Iterator[Event]:
        """Raises WorkerLost if what was streamed is not what the job has come to."""
        view = response_of(self._request, job)
        if view.status not in ("completed", "incomplete"):
            # There is no event of a cancelled response: its status says it.
            yield self._event("response.failed", response=view)
            return
        yield from self._in_progress()
        yield from self._rest(texts_of(job.result)[0])
        output = output_items(job.result, self._id)
        if set(self._places) != {item.id for item in output}:
            raise WorkerLost("the stream is not what the job's last attempt has written; retrieve the response")
        output.sort(key=lambda item: self._places[item.id].number)
        for item in output:
            yield from self._done(item, self._places[item.id])
        yield self._event(f"response.{view.status}", response=view.model_copy(update={"output": output}))

    def _rest(self, text: Mapping[str, Any]) -> Iterator[Event]:
        """What of a job's result was not streamed: all of it, if its worker streams nothing."""
        for new in self._written.finish(dict(text)):
            yield from self._say(new) if isinstance(new, NewText) else self._call(new)
        if has_message(dict(text)) and message_id(self._hex_id) not in self._places:
            yield from self._open_message()
            yield from self._text_delta(self._blank)

    def _done(self, item: OutputItemView, place: _Place) -> Iterator[Event]:
        if isinstance(item, OutputMessageView):
            (part,) = item.content
            of_part = {**place.named, "content_index": TEXT_PART}
            yield self._event("response.output_text.done", **of_part, text=part.text, logprobs=part.logprobs)
            yield self._event("response.content_part.done", **of_part, part=part)
        else:
            done = {**place.named, "name": item.name, "arguments": item.arguments}
            yield self._event("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", output_index=place.number, item=item)
