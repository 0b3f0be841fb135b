"""Tool calls found in what models write, in every form, wherever the pieces' borders lie."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.complete_calls import FoundCall
from tandem.tool_calls import Arguments, CallBegun, Said, ToolCallReader, read_tool_calls

NAMES = ("get_weather", "get_time")
PARIS = '{"city": "Paris"}'
LYON = '{"city": "Lyon"}'
WEATHER_PARIS = FoundCall("get_weather", PARIS)
TIME_LYON = FoundCall("get_time", LYON)

FORMS = {
    "hermes": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
        ("", (WEATHER_PARIS,)),
    ),
    "hermes, two after a text": (
        f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "get_time", "arguments": {LYON}}}\n</tool_call>',
        ("I look.\n", (WEATHER_PARIS, TIME_LYON)),
    ),
    "hermes, cut before its end": (
        f'<tool_call>{{"name": "get_weather", "arguments": {PARIS}',
        ("", (WEATHER_PARIS,)),
    ),
    "hermes, cut in its arguments": (
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa',
        ("", (FoundCall("get_weather", '{"city": "Pa'),)),
    ),
    "hermes, of a function that nobody offered": (
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        ("", (FoundCall("other", "{}"),)),
    ),
    "hermes, arguments first": (
        f'<tool_call>{{"arguments": {PARIS}, "name": "get_weather"}}</tool_call> done',
        (" done", (WEATHER_PARIS,)),
    ),
    "hermes, no arguments": ('<tool_call>{"name": "get_time"}</tool_call>', ("", (FoundCall("get_time", "{}"),))),
    "hermes, null arguments": (
        '<tool_call>{"name": "get_time", "arguments": null}</tool_call>',
        ("", (FoundCall("get_time", "{}"),)),
    ),
    "hermes, arguments as a string": (
        f'<tool_call>{{"name": "get_weather", "arguments": {json.dumps(PARIS)}}}</tool_call>',
        ("", (WEATHER_PARIS,)),
    ),
    "hermes, braces and quotes in strings": (
        '<tool_call>{"name": "get_time", "arguments": {"a": "}\\"</tool_call>{"}}</tool_call>',
        ("", (FoundCall("get_time", '{"a": "}\\"</tool_call>{"}'),)),
    ),
    "qwen3-coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        ("", (FoundCall("get_weather", '{"city": "Paris", "days": 3}'),)),
    ),
    "llama 3": (f'{{"name": "get_weather", "parameters": {PARIS}}}', ("", (WEATHER_PARIS,))),
    "llama 3, with its type": (
        f'{{"type": "function", "name": "get_weather", "parameters": {PARIS}}}',
        ("", (WEATHER_PARIS,)),
    ),
    "llama 3, two": (
        f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}}; '
        f'{{"name": "get_time", "parameters": {LYON}}}',
        ("", (WEATHER_PARIS, TIME_LYON)),
    ),
    "mistral": (
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}, "id": "a}}1"}}, '
        f'{{"name": "get_time", "arguments": {LYON}}}]',
        ("", (WEATHER_PARIS, TIME_LYON)),
    ),
    "mistral, its mark a special token": (
        f'[{{"name": "get_weather", "arguments": {PARIS}}}]',
        ("", (WEATHER_PARIS,)),
    ),
    "mistral since 2025": (
        f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]get_time[ARGS]{LYON}",
        ("", (WEATHER_PARIS, TIME_LYON)),
    ),
    "mistral since 2025, its marks special tokens": (
        f"get_weather{PARIS}get_time{LYON}",
        ("", (WEATHER_PARIS, TIME_LYON)),
    ),
}

NO_CALLS = [
    "",
    "It is sunny.",
    '{"name": "Ada", "born": 1815}',
    '{"name": "somebody", "arguments": {}}',
    "[1, 2, 3]",
    "get_weather is a function",
    "get_weather",
    "a < b <tool",
    "<tool_call>not JSON</tool_call> then",
    '<tool_call>{"nam',
    "  [TOOL_CALLS] none",
    '{"name": 5}',
]


@pytest.mark.parametrize(("text", "found"), FORMS.values(), ids=FORMS)
def test_every_form_is_understood(text: str, found: tuple[str, tuple[FoundCall, ...]]) -> None:
    assert read_tool_calls(text, NAMES) == found


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_said_as_it_stands(text: str) -> None:
    assert read_tool_calls(text, NAMES) == (text, ())


@pytest.mark.parametrize("text", [*(text for text, _ in FORMS.values()), *NO_CALLS])
def test_letter_by_letter_it_is_the_same(text: str) -> None:
    assert _in_pieces(list(text)) == read_tool_calls(text, NAMES)


SCRAPS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[",
    "]",
    "{",
    "}",
    '"',
    '"name": ',
    "get_time",
    '"get_time"',
]
SCRAPS += [", ", '"arguments": ', PARIS, "word", " ", "\n", "null", "\\", "<function=f>"]


@given(
    text=st.lists(st.sampled_from(SCRAPS), max_size=14).map("".join),
    borders=st.lists(st.integers(0, 120), max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_borders_change_nothing(text: str, borders: list[int]) -> None:
    """Whatever a model writes, how it is cut into pieces does not matter."""
    cuts = [0, *sorted(min(border, len(text)) for border in borders), len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    assert _in_pieces(pieces) == read_tool_calls(text, NAMES)


def test_arguments_are_told_while_they_are_written() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.push('Well.<tool_call>{"name": "get_wea') == [Said("Well.")]
    assert reader.push('ther", "argu') == []
    assert reader.push('ments": {"city"') == [CallBegun(0, "get_weather"), Arguments(0, '{"city"')]
    assert reader.push(': "Paris"}}') == [Arguments(0, ': "Paris"}')]
    assert reader.push("</tool_call>") == []
    assert reader.finish() == []


def test_a_text_is_told_while_it_is_written() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.push("It") == [Said("It")]
    assert reader.push(" is <") == [Said(" is ")]
    assert reader.push("b>") == [Said("<b>")]


def test_calls_beyond_the_most_are_dropped() -> None:
    text, _ = FORMS["hermes, two after a text"]
    assert read_tool_calls(text, NAMES, most=1) == ("I look.\n", (WEATHER_PARIS,))


def _in_pieces(pieces: list[str]) -> tuple[str, tuple[FoundCall, ...]]:
    reader = ToolCallReader(NAMES)
    heard = [each for piece in pieces for each in reader.push(piece)] + reader.finish()
    said = "".join(each.text for each in heard if isinstance(each, Said))
    calls = [each for each in heard if isinstance(each, CallBegun)]
    assert [each.call for each in calls] == list(range(len(calls)))
    arguments = [
        "".join(each.text for each in heard if isinstance(each, Arguments) and each.call == call.call)
        for call in calls
    ]
    return said, tuple(FoundCall(call.name, text) for call, text in zip(calls, arguments, strict=True))
