"""OpenAI's completions out of a job's result: what is chosen, and how tokens are listed."""

from typing import Any

import pytest
from pydantic import ValidationError

from api.routes.openai.completion_answer import text_completion
from api.routes.openai.completion_logprobs import LogprobsWriter
from api.routes.openai.completion_request import CompletionRequest
from api.routes.openai.field_names import renamed
from tandem.errors import InvalidRequest, PromptTooLong


def place(token: bytes, logprob: float | None, *others: tuple[bytes, float]) -> dict[str, Any]:
    top = [{"token": "", "id": 1, "logprob": value, "bytes": list(other)} for other, value in others]
    return {"token": "", "id": 0, "logprob": logprob, "bytes": list(token), "top_logprobs": top}


def text(words: str, *logprobs: float) -> dict[str, Any]:
    return {
        "generated_text": words,
        "finish_reason": "stop",
        "completion_tokens": len(logprobs),
        "logprobs": [place(b"x", logprob) for logprob in logprobs],
    }


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "p", **fields})


def test_the_best_of_each_prompt_are_chosen_by_their_mean_log_probability() -> None:
    """A long text of probable tokens is better than a short one of improbable ones."""
    body = request(prompt=["p", "q"], n=2, best_of=3, seed=1)
    choices = [
        text("worst", -3.0),
        text("long", -0.5, -0.5, -0.5, -0.5),
        text("short", -1.0),
        text("a", -0.3),
        text("b", -0.2),
        text("c", -0.1),
    ]
    result = {"choices": choices, "prompt_tokens": 4, "completion_tokens": 9, "path": "engine"}
    answer = text_completion(body, result, id="cmpl-1", created=1.5)
    assert [choice.text for choice in answer.choices] == ["long", "short", "c", "b"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in answer.choices), "they were asked for by us alone"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 13
    assert body.spec().parameters.n == 3


def test_tokens_are_listed_with_their_places_in_the_text() -> None:
    """A character of several tokens is told byte by byte, and begins where its first byte stands."""
    writer = LogprobsWriter(1)
    euro = "€".encode()
    told = writer.written([place(b"a ", None), place(euro[:2], -1.0, (b"b", -0.5)), place(euro[2:], -2.0)])
    more = writer.written([place(b"!", -0.25, (b"!", -0.25))])
    assert told.tokens == ["a ", "bytes:\\xe2\\x82", "bytes:\\xac"]
    assert told.token_logprobs == [None, -1.0, -2.0]
    assert told.text_offset == [0, 2, 2]
    assert told.top_logprobs == [None, {"b": -0.5, "bytes:\\xe2\\x82": -1.0}, {"bytes:\\xac": -2.0}]
    assert (more.text_offset, more.top_logprobs) == ([3], [{"!": -0.25}])
    assert LogprobsWriter(0).written([place(b"a", -1.0)]).top_logprobs is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"best_of": 1, "n": 2}, r"`best_of` \(1\) is less than `n`"),
        ({"best_of": 2, "stream": True}, "`best_of` is chosen when"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"echo": True, "suffix": "x"}, "`echo` and `suffix` exclude"),
        ({"min_tokens": 20}, r"`min_tokens` \(20\) is more than `max_tokens` \(16\)"),
        ({"prompt": [{"role": "user", "content": "x"}]}, "valid string"),
        ({"prompt": ["x"] * 129}, "at most 128"),
    ],
)
def test_what_does_not_go_together_is_refused_in_the_requests_words(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        request(**fields)


@pytest.mark.parametrize(
    ("param", "message", "expected"),
    [
        ("parameters.logit_bias", "`parameters.logit_bias` names", ("logit_bias", "`logit_bias` names")),
        ("inputs", "the `inputs` are long", ("prompt", "the `prompt` are long")),
        ("inputs[3]", "inputs[3] has 9 tokens", ("prompt[3]", "prompt[3] has 9 tokens")),
        ("parameters.max_new_tokens", "lower `max_new_tokens`", ("max_tokens", "lower `max_tokens`")),
        ("adapter", "the adapter is another's", ("model", "the adapter is another's")),
        (None, "no field", (None, "no field")),
    ],
)
def test_errors_name_the_requests_fields(param: str | None, message: str, expected: tuple[str | None, str]) -> None:
    error = PromptTooLong(message, param=param)
    told = renamed(error, "prompt")
    assert (told.param, told.message) == expected
    assert isinstance(told, PromptTooLong)
    assert isinstance(told, InvalidRequest)
    assert str(told) == told.message
    assert error.message == message, "the error itself stays as it was"
