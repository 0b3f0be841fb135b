"""Tools, completions and embeddings through the unmodified OpenAI client, on a running service with real models."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from transformers import AutoTokenizer

from tandem.embedded_service import EmbeddedService
from tandem.settings import Settings

CHAT = "smollm2-135m-instruct"
EMBEDDING = "all-minilm-l6-v2"
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the weather like in Paris? Use the function."}
]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}


@pytest.fixture
def sdk(service: EmbeddedService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.api_url}/v1", api_key=service.api_key, timeout=120, _strict_response_validation=True
    ) as sdk:
        yield sdk


@pytest.fixture
def lenient(service: EmbeddedService) -> Iterator[openai.OpenAI]:
    """Where OpenAI answers with nulls that its own types do not allow: in a stream of completions as the reason
    before the end, and as the log-probability of a prompt's first token."""
    with openai.OpenAI(base_url=f"{service.api_url}/v1", api_key=service.api_key, timeout=120) as sdk:
        yield sdk


def test_a_model_without_tools_in_its_template_calls_one_when_it_must(sdk: openai.OpenAI) -> None:
    """It finds the city by itself, and goes on with what the function said."""
    answer = sdk.chat.completions.create(
        model=CHAT, messages=QUESTION, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=80
    )
    (choice,) = answer.choices
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "get_weather")
    assert arguments["city"] == "Paris"
    assert arguments["unit"] in {"celsius", "fahrenheit"}

    history: list[Any] = [
        *QUESTION,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21, "sky": "sunny"}'},
    ]
    said = sdk.chat.completions.create(model=CHAT, messages=history, temperature=0, max_tokens=60)
    assert said.choices[0].message.content
    assert said.choices[0].message.tool_calls is None


def test_a_forced_call_is_streamed_as_it_is_answered(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": CHAT,
        "messages": QUESTION,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "temperature": 0,
        "max_tokens": 80,
    }
    whole = sdk.chat.completions.create(**asked).choices[0].message.tool_calls
    with sdk.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert whole is not None
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    assert [call.function.arguments for call in streamed.message.tool_calls] == [
        call.function.arguments for call in whole if call.type == "function"
    ]


def test_a_model_whose_template_knows_no_tools_says_so(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="knows no tools") as refused:
        sdk.chat.completions.create(model=CHAT, messages=QUESTION, tools=[WEATHER])
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"response_format": {"type": "regex", "regex": "a("}}, "response_format.regex"),
        ({"logit_bias": {"900000": 1}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": "a b c " * 9000}]}, "messages"),
    ],
)
def test_what_only_the_worker_finds_is_named_as_the_request_names_it(
    sdk: openai.OpenAI, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model=CHAT, messages=QUESTION, extra_body=changes)
    assert refused.value.param == param
    assert "parameters." not in refused.value.message


def test_streamed_log_probabilities_are_those_of_the_whole_answer(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": CHAT,
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = sdk.chat.completions.create(**asked).choices[0].logprobs
    streamed = [
        place
        for chunk in sdk.chat.completions.create(**asked, stream=True)
        if (logprobs := chunk.choices[0].logprobs) is not None
        for place in logprobs.content or ()
    ]
    assert whole is not None
    assert whole.content is not None
    assert [place.token for place in streamed] == [place.token for place in whole.content]
    assert [place.logprob for place in streamed] == pytest.approx(
        [place.logprob for place in whole.content], abs=0.05
    )


def test_a_plain_prompt_is_continued(sdk: openai.OpenAI) -> None:
    """As a text and as token ids; a repeated prompt is read from what is kept of the first."""
    prompt = "The capital of France is"
    tokens = AutoTokenizer.from_pretrained(Settings().models_dir / CHAT)(prompt).input_ids
    answer = sdk.completions.create(model=CHAT, prompt=[prompt, "Two plus two is"], temperature=0, max_tokens=4)
    by_ids = sdk.completions.create(model=CHAT, prompt=tokens, temperature=0, max_tokens=4)
    first, second = answer.choices
    assert (first.index, second.index) == (0, 1)
    assert "Paris" in first.text
    assert by_ids.choices[0].text == first.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert (answer.id[:5], answer.object) == ("cmpl-", "text_completion")


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echoed_prompt_is_told_with_its_log_probabilities(lenient: openai.OpenAI, max_tokens: int) -> None:
    """What benchmarks of language models ask for: how probable a given text is."""
    texts = ["The capital of France is Paris", "The capital of France is green"]
    answer = lenient.completions.create(
        model=CHAT, prompt=texts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
    )
    sums = []
    for choice, text in zip(answer.choices, texts, strict=True):
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.text_offset is not None
        said = choice.text
        assert said.startswith(text)
        assert "".join(logprobs.tokens).startswith(text)
        assert (
            all(said.startswith(token, at) for token, at in zip(logprobs.tokens, logprobs.text_offset, strict=True))
            or max_tokens
        )
        assert logprobs.token_logprobs[0] is None
        sums.append(sum(logprobs.token_logprobs[1 : len(logprobs.tokens) - max_tokens]))
    assert sums[0] > sums[1] + 1.0, "Paris is much more probable than green"
    streamed = list(
        lenient.completions.create(
            model=CHAT, prompt=texts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, stream=True
        )
    )
    for choice in answer.choices:
        pieces = [piece.choices[0] for piece in streamed if piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        told = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        assert choice.logprobs is not None
        for name in ("tokens", "text_offset"):
            assert [each for one in told for each in getattr(one, name)] == getattr(choice.logprobs, name)


def test_completions_are_streamed_chosen_and_counted(sdk: openai.OpenAI, lenient: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": CHAT, "prompt": "Once upon a time", "max_tokens": 8}
    pieces = list(
        lenient.completions.create(
            **asked, temperature=0, stream=True, echo=True, stream_options={"include_usage": True}
        )
    )
    whole = sdk.completions.create(**asked, temperature=0, echo=True).choices[0].text
    *texts, last = pieces
    assert "".join(piece.choices[0].text for piece in texts) == whole
    assert whole.startswith("Once upon a time")
    assert last.usage is not None
    assert last.usage.completion_tokens == 8
    best = sdk.completions.create(**asked, temperature=1, seed=3, n=1, best_of=4)
    assert len(best.choices) == 1
    assert best.choices[0].logprobs is None
    assert best.usage is not None
    assert best.usage.completion_tokens > 8


def test_a_suffix_needs_a_model_that_fills_gaps(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no fill-in-the-middle tokens") as refused:
        sdk.completions.create(model=CHAT, prompt="def f(", suffix="return x")
    assert refused.value.param == "suffix"


def test_embeddings_are_of_texts_or_tokens_and_as_long_as_is_asked(sdk: openai.OpenAI) -> None:
    tokens = AutoTokenizer.from_pretrained(Settings().models_dir / EMBEDDING)(
        "a red apple", add_special_tokens=False
    ).input_ids
    text, ids = (
        sdk.embeddings.create(model=EMBEDDING, input=given, encoding_format="float", dimensions=64).data[0].embedding
        for given in ("a red apple", tokens)
    )
    assert len(text) == 64
    assert sum(number * number for number in text) == pytest.approx(1.0, abs=1e-5)
    assert ids == pytest.approx(text, abs=1e-3)
    with pytest.raises(openai.BadRequestError, match="tokens are 0 to") as refused:
        sdk.embeddings.create(model=EMBEDDING, input=[[99_000_000]], encoding_format="float")
    assert refused.value.param == "input[0]"
