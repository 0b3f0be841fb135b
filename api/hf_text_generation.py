"""huggingface_hub's `text_generation()`: what it asks for, its answer with `details`, and its stream.

Its wire form is that of Text Generation Inference (TGI).
"""

from collections.abc import Iterator
from typing import Any

from api.routes.openai.chat_answer import texts_of
from api.routes.openai.streamed_choice import NewText, StreamedChoice
from tandem.errors import InvalidRequest, TandemError
from tandem.job import JobEvent

JSON_GRAMMARS = ("json", "json_schema")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "watermark": (False,),
    "decoder_input_details": (False,),
    "best_of": (1,),
    "typical_p": (1.0,),
}
"""Parameters that are not taken, with the values at which they change nothing."""
NO_TOKEN = {"id": -1, "text": "", "logprob": 0.0, "special": True}
"""Of a stream without a text: its last event must name a token."""

Fields = dict[str, Any]


def generation_asked(parameters: Fields, *, stream: bool) -> Fields:
    """The job's fields besides its inputs. Sampling is off unless `do_sample` or a temperature asks for it."""
    said = {
        name: value
        for name, value in parameters.items()
        if value is not None and not (name in NEUTRAL and value in NEUTRAL[name])
    }
    samples, details = said.pop("do_sample", None), said.pop("details", None)
    if samples and "temperature" not in said:
        said["temperature"] = 1.0
    if samples is False:
        said.pop("temperature", None)
    if "grammar" in said:
        said |= _response_format(said.pop("grammar"))
    if "top_n_tokens" in said:
        said["top_logprobs"] = said.pop("top_n_tokens")
    if details or stream or "top_logprobs" in said:
        said["logprobs"] = True  # every token that TGI shows has its own
    fields: Fields = {"stream": True} if stream else {}
    if "adapter_id" in said:
        fields["adapter"] = said.pop("adapter_id")
    return {**fields, "parameters": said} if said else fields


def _response_format(grammar: Any) -> Fields:
    """What is in no known form is refused by its own name."""
    match grammar:
        case {"type": "regex", "value": str(regex)}:
            return {"response_format": {"type": "regex", "regex": regex}}
        case {"type": "json_schema", "value": {"schema": dict(schema)}}:
            return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        case {"type": kind, "value": dict(schema)} if kind in JSON_GRAMMARS:
            return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    raise InvalidRequest(
        '`parameters.grammar` is {"type": "json", "value": <JSON Schema>}, or {"type": "regex", "value": <text>}',
        param="parameters.grammar",
    )


def generation_shown(sent: Fields, result: Fields) -> list[Any]:
    """The answer: a list of one, of `n` texts, or of such a list for each of several inputs."""
    parameters = sent.get("parameters") or {}
    texts = [_text(text, parameters) for text in texts_of(result)]
    inputs = sent.get("inputs")
    if not isinstance(inputs, list) or not isinstance(inputs[0], str | list):
        return texts
    count = len(texts) // len(inputs)
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def _text(text: Fields, parameters: Fields) -> Fields:
    shown = {"generated_text": text["generated_text"]}
    if not parameters.get("details"):
        return shown
    places = text.get("logprobs") or []
    details = {**_end(text, parameters), "prefill": [], "tokens": [_token(place) for place in places]}
    if parameters.get("top_n_tokens"):
        details["top_tokens"] = [_others(place) for place in places]
    return {**shown, "details": details}


def _end(text: Fields, parameters: Fields) -> Fields:
    """Why and when a text ended. Which of several reasons to stop it was, the job does not tell."""
    stopped = "stop_sequence" if parameters.get("stop") else "eos_token"
    return {
        "finish_reason": "length" if text["finish_reason"] == "length" else stopped,
        "generated_tokens": text["completion_tokens"],
        "seed": parameters.get("seed"),
    }


def _token(place: Fields) -> Fields:
    """A token of the text; the one that ends it is no part of that, so that none is special."""
    return {"id": place["id"], "text": place["token"], "logprob": place["logprob"], "special": False}


def _others(place: Fields) -> list[Fields]:
    return [_token(other) for other in place["top_logprobs"]]


class GenerationStream:
    """The tokens of one text as TGI streams them: the last one comes with the whole text."""

    def __init__(self, sent: Fields) -> None:
        self._parameters: Fields = sent.get("parameters") or {}
        self._text = StreamedChoice()
        self._number = 0
        self._held: Fields | None = None
        """The newest token: it is not known yet whether it is the last."""

    def add(self, event: JobEvent) -> Iterator[Fields]:
        """What an event of the job adds. Raises WorkerLost if the attempts' texts differ."""
        match event.type:
            case "tokens":
                if (new := self._text.add_text(event.data)) is not None:
                    yield from self._tokens(new)
            case "state" if event.data["state"] == "running":
                self._text.restart()

    def finish(self, result: Fields) -> Iterator[Fields]:
        """The rest of the text, and its end. Raises WorkerLost if the stream has lost or changed some."""
        for new in self._text.finish(result):
            assert isinstance(new, NewText), "a job without tools calls none"
            yield from self._tokens(new)
        last = self._held or self._event(NO_TOKEN)
        end = {**_end(result, self._parameters), "input_length": result["prompt_tokens"]}
        yield {**last, "generated_text": result["generated_text"], "details": end}

    def _tokens(self, new: NewText) -> Iterator[Fields]:
        """An event for each token; of those that came together, the last one has their text, which is then whole."""
        places = new.logprobs or []
        events = [self._event({**_token(place), "text": ""}) for place in places]
        for event, place in zip(events, places, strict=True):
            if self._parameters.get("top_n_tokens"):
                event["top_tokens"] = _others(place)
        if not events:
            events = [self._event(NO_TOKEN)]
        events[-1]["token"] = {**events[-1]["token"], "text": new.text}
        for event in events:
            if self._held is not None:
                yield self._held
            self._held = event

    def _event(self, token: Fields) -> Fields:
        self._number += 1
        return {"index": self._number, "token": token, "generated_text": None, "details": None}


def generation_error(error: TandemError) -> Fields:
    """What ends a stream that has begun."""
    return {"error": error.message, "error_type": error.code}
