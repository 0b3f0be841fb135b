"""OpenAI's response, made of a request and its job's result. Pure: batches make their rows' bodies of it too.

It has what the Open Responses specification (openresponses.org) demands of one besides.
"""

from typing import Any, Literal

from pydantic import BaseModel

from api.routes.openai.chat_answer import texts_of
from api.routes.openai.field_names import renamed
from api.routes.openai.response_items import (
    CallView,
    ItemStatus,
    LogprobView,
    OutputItemView,
    OutputMessageView,
    OutputTextView,
    TopLogprobView,
)
from api.routes.openai.response_request import (
    FIELD_NAMES,
    FunctionTool,
    ResponseRequest,
    TextOptions,
    ToolChoiceAsked,
)
from api.waiting import succeeded
from tandem.errors import TandemError
from tandem.job import Job
from tandem.responses import RESPONSE, ResponseStatus, response_id, response_status

FIRST_SERVER_STATUS = 500

ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
"""OpenAI's codes are an enumeration that its clients check: the message tells the rest."""


class ResponseErrorView(BaseModel):
    code: ErrorCode
    message: str

    @classmethod
    def of(cls, error: TandemError) -> "ResponseErrorView":
        code: ErrorCode = "server_error" if error.status >= FIRST_SERVER_STATUS else "invalid_prompt"
        return cls(code=code, message=renamed(error, "input", FIELD_NAMES).message)


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int

    @classmethod
    def of(cls, result: dict[str, Any]) -> "ResponseUsage":
        read, written = result["prompt_tokens"], result["completion_tokens"]
        return cls(
            input_tokens=read,
            input_tokens_details=InputTokensDetails(cached_tokens=result.get("reused_tokens", 0)),
            output_tokens=written,
            total_tokens=read + written,
        )


class ReasoningView(BaseModel):
    effort: str | None = None
    summary: str | None = None


class ResponseView(BaseModel):
    """A response: what was asked, and what the model has said or called."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool
    error: ResponseErrorView | None = None
    frequency_penalty: float
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItemView] = []
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: Literal["in_memory", "24h"] | None
    reasoning: ReasoningView = ReasoningView()
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: TextOptions
    tool_choice: ToolChoiceAsked
    tools: tuple[FunctionTool, ...]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled", "auto"]
    usage: ResponseUsage | None = None
    user: str | None

    @classmethod
    def begun(cls, request: ResponseRequest, *, id: str, created: float, status: ResponseStatus) -> "ResponseView":  # noqa: A002 - OpenAI's name
        """A response without an output yet: all that its request says of it. `created` in seconds since the epoch."""
        echoed = (
            "background",
            "frequency_penalty",
            "instructions",
            "max_output_tokens",
            "max_tool_calls",
            "metadata",
            "model",
            "parallel_tool_calls",
            "presence_penalty",
            "previous_response_id",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "store",
            "temperature",
            "text",
            "tool_choice",
            "tools",
            "top_logprobs",
            "top_p",
            "truncation",
            "user",
        )
        return cls(
            id=id,
            created_at=int(created),
            status=status,
            service_tier=request.served_tier,
            **{name: getattr(request, name) for name in echoed},
        )

    def answered(self, result: dict[str, Any], *, ended: float | None) -> "ResponseView":
        """The same with its output."""
        is_cut = texts_of(result)[0]["finish_reason"] == "length"
        return self.model_copy(
            update={
                "status": "incomplete" if is_cut else "completed",
                "incomplete_details": IncompleteDetails() if is_cut else None,
                "completed_at": None if is_cut or ended is None else int(ended),
                "output": output_items(result, self.id),
                "usage": ResponseUsage.of(result),
            }
        )


def response_answer(
    request: ResponseRequest,
    result: dict[str, Any],
    *,
    id: str,  # noqa: A002 - OpenAI's name
    created: float,
    ended: float | None = None,
) -> ResponseView:
    """The response to a request, out of the result of its job. Times are in seconds since the epoch."""
    return ResponseView.begun(request, id=id, created=created, status="in_progress").answered(result, ended=ended)


def response_of(request: ResponseRequest, job: Job) -> ResponseView:
    """The response to a request as its job stands."""
    status = response_status(job)
    view = ResponseView.begun(request, id=response_id(job.id), created=job.created_at, status=status)
    if status in ("completed", "incomplete"):
        return view.answered(job.result, ended=job.finished_at)
    if status == "failed":
        return view.model_copy(update={"error": ResponseErrorView.of(_error(job))})
    return view


def _error(job: Job) -> TandemError:
    """Why a job has no result."""
    try:
        succeeded(job)
    except TandemError as error:
        return error
    raise AssertionError(f"job {job.id} has succeeded")


def output_items(result: dict[str, Any], id: str) -> list[OutputItemView]:  # noqa: A002 - OpenAI's name
    """What the model has said, and its calls after it; a response that only calls has no message."""
    hex_id = id.removeprefix(RESPONSE)
    text = texts_of(result)[0]
    status: ItemStatus = "incomplete" if text["finish_reason"] == "length" else "completed"
    items: list[OutputItemView] = []
    calls = text.get("tool_calls", [])
    if has_message(text):
        logprobs = [logprob_view(told) for told in text.get("logprobs") or ()]
        part = OutputTextView(text=text["generated_text"], logprobs=logprobs)
        items.append(OutputMessageView(id=message_id(hex_id), status=status, content=[part]))
    for number, call in enumerate(calls):
        is_last = number == len(calls) - 1
        items.append(
            CallView(
                id=call_item_id(hex_id, number),
                # What the limit has cut is the last thing that was written.
                status=status if is_last else "completed",
                call_id=call["id"],
                name=call["function"]["name"],
                arguments=call["function"]["arguments"],
            )
        )
    return items


def has_message(text: dict[str, Any]) -> bool:
    """Whether one text of a result says something: white space beside calls does not."""
    return bool(text["generated_text"].strip()) or not text.get("tool_calls")


def message_id(hex_id: str) -> str:
    return f"msg_{hex_id}"


def call_item_id(hex_id: str, number: int) -> str:
    return f"fc_{hex_id}_{number}"


def logprob_view(told: dict[str, Any]) -> LogprobView:
    """One token's place in a job's result, in OpenAI's shape."""

    def top(place: dict[str, Any]) -> TopLogprobView:
        return TopLogprobView(token=place["token"], logprob=place["logprob"], bytes=place["bytes"] or [])

    return LogprobView(**dict(top(told)), top_logprobs=[top(place) for place in told["top_logprobs"]])
