"""OpenAI's streamed completions: the pieces of one job's texts, as server-sent events."""

from collections.abc import AsyncIterator, Iterator

from sse_starlette import ServerSentEvent

from api.errors import error_body
from api.routes.openai.chat_answer import texts_of
from api.routes.openai.completion_answer import Completion, CompletionChoice, FinishReason, completion_id
from api.routes.openai.completion_logprobs import LogprobsWriter
from api.routes.openai.completion_request import CompletionRequest
from api.routes.openai.field_names import renamed
from api.routes.openai.fingerprint import system_fingerprint
from api.routes.openai.streamed_choice import NewCall, NewText, StreamedChoice
from api.routes.openai.usage import Usage
from api.waiting import Waiting
from tandem.errors import TandemError
from tandem.job import Job, JobEvent


class CompletionStream:
    """One answer, of `n` choices for each prompt, in pieces."""

    def __init__(self, body: CompletionRequest, job: Job) -> None:
        self._body = body
        self._job = job
        count = len(body.spec().prompts) * body.n
        self._choices = [StreamedChoice() for _ in range(count)]
        self._writers = [LogprobsWriter(body.logprobs or 0) for _ in range(count)]

    async def sent(
        self, first: JobEvent | None, rest: AsyncIterator[JobEvent], waiting: Waiting
    ) -> AsyncIterator[ServerSentEvent]:
        """The pieces; an error after the first of them is an event too, since the status is sent."""
        async with waiting.cancelled_if_abandoned():
            try:
                if first is not None:
                    for piece in self._new(first):
                        yield piece
                    async for event in rest:
                        for piece in self._new(event):
                            yield piece
                result = (await waiting.result()).result
                for index, text in enumerate(texts_of(result)):
                    for new in self._choices[index].finish(text):
                        yield self._told(index, new)
            except TandemError as error:
                yield ServerSentEvent(error_body(renamed(error, "prompt")).model_dump_json(), sep="\n")
                return
            for index, text in enumerate(texts_of(result)):
                yield self._piece(index, NewText("", None), text["finish_reason"])
            if self._body.includes_usage:
                yield self._event([], Usage.of(result))
            yield ServerSentEvent("[DONE]", sep="\n")

    def _new(self, event: JobEvent) -> Iterator[ServerSentEvent]:
        """What an event of the job adds."""
        if event.type == "tokens":
            index = event.data.get("index", 0)  # a job of one text does not number it
            if new := self._choices[index].add_text(event.data):
                yield self._told(index, new)
        if event.type == "state" and event.data["state"] == "running":
            for choice in self._choices:
                choice.restart()

    def _told(self, index: int, new: NewText | NewCall) -> ServerSentEvent:
        assert isinstance(new, NewText), "a plain prompt has no tools"
        return self._piece(index, new, None)

    def _piece(self, index: int, new: NewText, finish_reason: FinishReason | None) -> ServerSentEvent:
        asked = self._body.logprobs is not None and new.logprobs is not None
        logprobs = self._writers[index].written(new.logprobs or []) if asked else None
        choice = CompletionChoice(index=index, text=new.text, logprobs=logprobs, finish_reason=finish_reason)
        return self._event([choice], None)

    def _event(self, choices: list[CompletionChoice], usage: Usage | None) -> ServerSentEvent:
        piece = Completion(
            id=completion_id(self._job.id),
            created=int(self._job.created_at),
            model=self._body.model,
            choices=choices,
            usage=usage,
            system_fingerprint=system_fingerprint(self._body.model),
        )
        left_out = None if self._body.includes_usage else {"usage"}
        return ServerSentEvent(piece.model_dump_json(exclude=left_out), sep="\n")
