"""huggingface_hub's text_generation(): what tests through its client do not reach."""

from typing import Any

import pytest

from api.hf_text_generation import GenerationStream, generation_asked, generation_shown
from tandem.errors import WorkerLost
from tandem.job import JobEvent


def place(token: str, number: int) -> dict[str, Any]:
    return {"token": token, "id": number, "logprob": -0.5, "bytes": [], "top_logprobs": []}


def tokens(text: str, *places: dict[str, Any]) -> JobEvent:
    return JobEvent("1-0", "tokens", {"text": text, "logprobs": list(places)})


def result(text: str, *places: dict[str, Any]) -> dict[str, Any]:
    return {
        "generated_text": text,
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "completion_tokens": len(places),
        "logprobs": list(places),
    }


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.3}, {"temperature": 0.3}),
        ({"do_sample": False, "temperature": 0.3}, {}),
        ({"watermark": False, "best_of": 1, "decoder_input_details": False, "seed": None}, {}),
        ({"top_n_tokens": 2}, {"top_logprobs": 2, "logprobs": True}),
    ],
)
def test_parameters_become_a_jobs(parameters: dict[str, Any], said: dict[str, Any]) -> None:
    assert generation_asked(parameters, stream=False).get("parameters", {}) == said


def test_an_adapter_is_the_jobs() -> None:
    assert generation_asked({"adapter_id": "a"}, stream=False) == {"adapter": "a"}


def test_several_inputs_have_a_list_each() -> None:
    texts = [{"generated_text": text} for text in "abcd"]
    several = {"choices": texts}
    assert generation_shown({"inputs": ["x", "y"]}, several) == [texts[:2], texts[2:]]
    assert generation_shown({"inputs": "x"}, several) == texts


def test_tokens_that_come_together_have_their_text_at_the_last_one() -> None:
    """A character may span tokens: none of them has a text of its own."""
    stream = GenerationStream({})
    whole = result("né", place("n", 1), place("\ufffd", 2), place("\ufffd", 3))
    events = [
        *stream.add(tokens("n", place("n", 1))),
        *stream.add(tokens("é", place("\ufffd", 2), place("\ufffd", 3))),
    ]
    events += stream.finish(whole)
    assert [(event["token"]["id"], event["token"]["text"]) for event in events] == [(1, "n"), (2, ""), (3, "é")]
    assert [event["generated_text"] for event in events] == [None, None, "né"]


def test_a_text_without_tokens_ends_its_stream_all_the_same() -> None:
    (last,) = GenerationStream({"parameters": {"stop": ["x"]}}).finish(result(""))
    assert (last["generated_text"], last["token"]["special"]) == ("", True)
    assert last["details"]["finish_reason"] == "stop_sequence"


def test_a_lost_attempt_does_not_show() -> None:
    stream = GenerationStream({})
    running = JobEvent("1-0", "state", {"state": "running"})
    hello, world = place("Hello", 1), place(" world", 2)
    events = list(stream.add(tokens("Hello", hello)))
    events += stream.add(running)
    events += stream.add(tokens("Hello", hello))
    events += stream.add(tokens(" world", world))
    events += stream.finish(result("Hello world", hello, world))
    assert [event["token"]["text"] for event in events] == ["Hello", " world"]
    with pytest.raises(WorkerLost):
        list(stream.finish(result("Goodbye")))
