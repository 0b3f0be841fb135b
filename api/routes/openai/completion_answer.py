"""OpenAI's completion, made of a text-generation job's result. Pure: batches make their rows' bodies of it too."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from api.routes.openai.chat_answer import texts_of
from api.routes.openai.completion_logprobs import CompletionLogprobs, LogprobsWriter
from api.routes.openai.completion_request import CompletionRequest
from api.routes.openai.fingerprint import system_fingerprint
from api.routes.openai.usage import Usage

FinishReason = Literal["stop", "length"]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    """None in a stream, before the last piece."""


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    """`n` for each prompt, in the prompts' order."""
    usage: Usage | None
    system_fingerprint: str


def text_completion(body: CompletionRequest, result: dict[str, Any], *, id: str, created: float) -> Completion:  # noqa: A002  # OpenAI's name
    """The answer to a request, out of the result of its job. `created` is in seconds since the epoch."""
    return Completion(
        id=id,
        created=int(created),
        model=body.model,
        choices=[_choice(index, text, body) for index, text in enumerate(_chosen(texts_of(result), body))],
        usage=Usage.of(result),
        system_fingerprint=system_fingerprint(body.model),
    )


def completion_id(job_id: str) -> str:
    """The answer's id, which names its job."""
    return f"cmpl-{job_id}"


def told_tokens(text: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of one of a result's texts, those of the prompt first if they are told."""
    return [*text.get("prompt_logprobs", ()), *text["logprobs"]]


def _chosen(texts: list[dict[str, Any]], body: CompletionRequest) -> Iterator[dict[str, Any]]:
    """Of each prompt's candidates the `n` best, best first; all in their order where there is nothing to choose."""
    for first in range(0, len(texts), body.candidates):
        candidates = texts[first : first + body.candidates]
        if body.candidates > body.n:
            candidates = sorted(candidates, key=_mean_logprob, reverse=True)
        yield from candidates[: body.n]


def _mean_logprob(text: dict[str, Any]) -> float:
    """Of a text's own tokens; an empty one is as good as can be."""
    logprobs = [place["logprob"] for place in text["logprobs"]]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


def _choice(index: int, text: dict[str, Any], body: CompletionRequest) -> CompletionChoice:
    logprobs = None
    if body.logprobs is not None:
        logprobs = LogprobsWriter(body.logprobs).written(told_tokens(text))
    return CompletionChoice(
        index=index, text=text["generated_text"], logprobs=logprobs, finish_reason=text["finish_reason"]
    )
