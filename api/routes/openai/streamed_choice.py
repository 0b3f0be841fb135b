"""One choice of a stream over all attempts of its job: its text, its tokens' log-probabilities, its tool calls."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from api.routes.openai.completion_answer import told_tokens
from api.routes.openai.streamed_text import StreamedText
from tandem.errors import WorkerLost


@dataclass(frozen=True, slots=True)
class NewText:
    """What is to be sent of the text now."""

    text: str
    logprobs: list[dict[str, Any]] | None
    """Of the tokens that came with it; None where they are not asked for."""


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call that begins (with its id and name), or the next piece of its arguments."""

    call: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: StreamedText = field(default_factory=StreamedText)


class StreamedChoice:
    def __init__(self) -> None:
        self._text = StreamedText()
        self._calls: list[_Call] = []
        self._sent_logprobs = 0
        self._written_logprobs = 0
        """Of the running attempt."""

    def restart(self) -> None:
        """Another attempt begins."""
        self._text.restart()
        self._written_logprobs = 0
        for call in self._calls:
            call.arguments.restart()

    def add_text(self, data: dict[str, Any]) -> NewText | None:
        """Of a `tokens` event. Raises WorkerLost if the attempts' texts differ."""
        return self._new_text(self._text.add(data["text"]), data.get("logprobs"))

    def add_call(self, data: dict[str, Any]) -> NewCall | None:
        """Of a `tool_call` event. Raises WorkerLost if the attempts' calls differ."""
        number = data["call"]
        if "name" in data and number == len(self._calls):
            self._calls.append(_Call(data["id"], data["name"]))
            return NewCall(number, data["id"], data["name"], self._calls[number].arguments.add(data["arguments"]))
        call = self._calls[number]
        self._require_same(call, data.get("name", call.name))
        piece = call.arguments.add(data["arguments"])
        return NewCall(number, None, None, piece) if piece else None

    def finish(self, text: dict[str, Any]) -> Iterator[NewText | NewCall]:
        """What of the result's text is still to be sent. Raises WorkerLost if the stream has lost or changed some."""
        logprobs = told_tokens(text) if "logprobs" in text else None
        # All of them as one event, which begins where the attempt has begun.
        self._written_logprobs = 0
        if new := self._new_text(self._text.finish(text["generated_text"]), logprobs):
            yield new
        for number, told in enumerate(text.get("tool_calls", ())):
            name, arguments = told["function"]["name"], told["function"]["arguments"]
            if number == len(self._calls):
                self._calls.append(_Call(told["id"], name))
                yield NewCall(number, told["id"], name, "")
            call = self._calls[number]
            self._require_same(call, name)
            if piece := call.arguments.finish(arguments):
                yield NewCall(number, None, None, piece)

    def _new_text(self, piece: str, logprobs: list[dict[str, Any]] | None) -> NewText | None:
        if logprobs is None:
            return NewText(piece, None) if piece else None
        new = logprobs[max(0, self._sent_logprobs - self._written_logprobs) :]
        self._written_logprobs += len(logprobs)
        self._sent_logprobs = max(self._sent_logprobs, self._written_logprobs)
        return NewText(piece, new) if piece or new else None

    @staticmethod
    def _require_same(call: _Call, name: str) -> None:
        if call.name != name:
            raise WorkerLost(
                "the job had to be begun again, and its next attempt calls another function than was sent; ask "
                "again, at temperature 0 or with a seed so that every attempt writes the same"
            )
