"""OpenAI's chat answer, made of a text-generation job's result. Pure: batches make their rows' bodies of it too."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.routes.openai.chat_request import ChatRequest, ServedTier
from api.routes.openai.fingerprint import system_fingerprint
from api.routes.openai.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls"]


def is_none(value: Any) -> bool:
    return value is None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class AnswerToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where the answer is nothing but calls."""
    refusal: None = None
    tool_calls: Annotated[list[AnswerToolCall] | None, Field(exclude_if=is_none)] = None


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
        calls = text.get("tool_calls")
        content = text["generated_text"]
        return cls(
            index=index,
            message=AnswerMessage(
                content=None if calls and not content.strip() else content,
                tool_calls=None if not calls else [AnswerToolCall.model_validate(call) for call in calls],
            ),
            logprobs=None if logprobs is None else ChoiceLogprobs(content=logprobs),
            finish_reason=text["finish_reason"],
        )


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: ServedTier | None = None
    system_fingerprint: str


def chat_completion(body: ChatRequest, result: dict[str, Any], *, id: str, created: float) -> ChatCompletion:  # noqa: A002  # OpenAI's name
    """The answer to a request, out of the result of its job. `created` is in seconds since the epoch."""
    return ChatCompletion(
        id=id,
        created=int(created),
        model=body.model,
        choices=[Choice.of(index, text) for index, text in enumerate(texts_of(result))],
        usage=Usage.of(result),
        service_tier=body.served_tier,
        system_fingerprint=system_fingerprint(body.model),
    )


def completion_id(job_id: str) -> str:
    """The answer's id, which names its job."""
    return f"chatcmpl-{job_id}"


def texts_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The texts of a job's result: several are its `choices`, one is the result itself."""
    texts: list[dict[str, Any]] = result.get("choices", [result])
    return texts
