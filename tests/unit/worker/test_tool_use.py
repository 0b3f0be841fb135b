"""Tools and plain prompts through the text-generation runner: a real engine and tokenizer, random weights."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidRequest
from tandem.specs import TextGenerationSpec
from tests.one_thread import one_thread  # noqa: F401 - pytest finds it here
from tests.tiny_models import build, samples
from tests.unit.worker.unqueued_attempt import UnqueuedAttempt
from worker.attempt import Attempt
from worker.batchers import Batchers
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.tokens.call_grammar import HERMES, LLAMA, PLAIN, call_form
from worker.engine.tokens.constraints import ConstraintCompiler
from worker.resident_model import ResidentModel
from worker.runners.text_generation import TextGenerationRunner
from worker.tasks.infilling import encode_gap
from worker.tasks.prompts import encode_prompt, spell_out
from worker.tasks.response_template import read_by_template

NO_STORE: Any = None
PROMPT = samples.SENTENCES[5]
CHAT = [{"role": "user", "content": "the sea"}]
COLOURS = ["red", "green"]
PAINT = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint the wall.",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": COLOURS}, "coats": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["colour", "coats"],
        },
    },
}
REST = {"type": "function", "function": {"name": "rest"}}
HERMES_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool['function']['name'] }} {% endfor %}<tool_call>{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<call>{{ call['function']['arguments']['colour'] }}</call>"
    "{% endfor %}{{ '\n' }}{% endfor %}assistant: "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("tiny-llama", tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[ResidentModel]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.max_position_embeddings = 1024  # it computes them; a described function is long in bytes
    sizes = {"sequence_slots": 4, "slot_tokens": 1024, "step_tokens": 16, "adapter_slots": 0, "adapter_rank": 0}
    loop = EngineLoop(Engine(model, tokenizer, **sizes))
    loop.start()
    constraints = ConstraintCompiler(tokenizer, loop.engine.vocabulary, loop.engine.end_tokens)
    entry = CatalogueEntry.model_validate({"name": "tiny", "tasks": ["text-generation"], "folder": folder})
    unused: Any = None
    made = ResidentModel(
        entry,
        "text-generation",
        model,
        tokenizer,
        loop,
        Batchers(unused),
        0,
        0.0,
        lambda: None,
        constraints=constraints,
    )
    yield made
    made.close()


@pytest.fixture
def knows_tools(engine: ResidentModel) -> Iterator[PreTrainedTokenizerBase]:
    """The tokenizer with a template that tells of tools, until the test ends."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    before, tokenizer.chat_template = tokenizer.chat_template, HERMES_TEMPLATE
    yield tokenizer
    tokenizer.chat_template = before


class Events(UnqueuedAttempt):
    """An attempt whose events stay with it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, dict[str, Any]]] = []

    def report(self, event: str, data: dict[str, Any]) -> None:
        self.told.append((event, data))


def spec_of(**fields: Any) -> TextGenerationSpec:
    return TextGenerationSpec.model_validate({"task": "text-generation", "model": "tiny", **fields})


def run(where: ResidentModel, attempt: Attempt | None = None, **fields: Any) -> dict[str, Any]:
    return TextGenerationRunner(NO_STORE).run(attempt or Events(), spec_of(**fields), where, NO_STORE)


DRAWN = {"temperature": 1.5, "max_new_tokens": 250}
"""Room for a call that is spelt letter by letter, and for white space where JSON may have it."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_forced_call_can_be_carried_out_whatever_the_model(engine: ResidentModel, choice: Any, seed: int) -> None:
    """A random model, at a high temperature, calls a function on offer with arguments that its schema allows."""
    result = run(engine, inputs=CHAT, tools=[PAINT, REST], tool_choice=choice, parameters={**DRAWN, "seed": seed})
    (call,) = result["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert (result["finish_reason"], result["generated_text"]) == ("tool_calls", "")
    if call["function"]["name"] == "rest":
        assert choice == "required"
        assert arguments == {}
    else:
        assert set(arguments) == {"colour", "coats"}
        assert arguments["colour"] in COLOURS
        assert 1 <= arguments["coats"] <= 9


def test_a_forced_call_is_streamed_as_the_result_has_it(engine: ResidentModel) -> None:
    attempt = Events()
    result = run(
        engine,
        attempt,
        inputs=CHAT,
        tools=[PAINT],
        tool_choice="required",
        stream=True,
        parameters={**DRAWN, "seed": 1, "n": 2},
    )
    for index, text in enumerate(result["choices"]):
        (call,) = text["tool_calls"]
        told = [data for event, data in attempt.told if event == "tool_call" and data["index"] == index]
        assert (told[0]["id"], told[0]["name"]) == (call["id"], "paint")
        assert "".join(data["arguments"] for data in told) == call["function"]["arguments"]
        assert len(told) > 2, "the arguments come in pieces"
    assert len({text["tool_calls"][0]["id"] for text in result["choices"]}) == 2


def test_several_calls_are_forced_only_if_that_is_said(engine: ResidentModel) -> None:
    asked: dict[str, Any] = {"inputs": CHAT, "tools": [REST], "tool_choice": "required"}
    parameters = {**DRAWN, "seed": 3}
    many = run(engine, **asked, parallel_tool_calls=True, parameters=parameters)
    one = run(engine, **asked, parameters=parameters)
    assert len(many["tool_calls"]) > 1
    assert len(one["tool_calls"]) == 1


def test_a_model_whose_template_knows_no_tools_is_not_asked_whether_it_wants_one(engine: ResidentModel) -> None:
    with pytest.raises(InvalidRequest, match=r"'tiny' knows no tools, .*`tool_choice` `required`") as refused:
        run(engine, inputs=CHAT, tools=[PAINT])
    assert refused.value.param == "tools"
    plain = run(engine, inputs=CHAT, parameters={"max_new_tokens": 4})
    assert (
        run(engine, inputs=CHAT, tools=[PAINT], tool_choice="none", parameters={"max_new_tokens": 4})[
            "generated_text"
        ]
        == plain["generated_text"]
    )


def test_the_template_is_told_of_the_tools(knows_tools: PreTrainedTokenizerBase, engine: ResidentModel) -> None:
    call = {"id": "c", "function": {"name": "paint", "arguments": '{"colour": "red"}'}}
    messages: list[dict[str, Any]] = [
        *CHAT,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    spec = spec_of(inputs=messages, tools=[PAINT, REST])
    read = knows_tools.decode(encode_prompt(knows_tools, spec, spec.prompts[0]))
    assert read == "paint rest <tool_call>user: the sea\nassistant: <call>red</call>\ntool: x\nassistant: "
    assert "tool_calls" not in run(engine, inputs=CHAT, tools=[PAINT], parameters={"max_new_tokens": 3})


def test_calls_and_results_are_spelt_out_for_a_template_that_knows_none() -> None:
    call = {"function": {"name": "paint", "arguments": {"colour": "red"}}}
    messages: list[dict[str, Any]] = [
        *CHAT,
        {"role": "assistant", "content": "Well.", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "tool", "content": "dry"},
    ]
    assert spell_out(messages) == [
        *CHAT,
        {
            "role": "assistant",
            "content": 'Well.\n<tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>',
        },
        {
            "role": "user",
            "content": "<tool_response>\ndone\n</tool_response>\n<tool_response>\ndry\n</tool_response>",
        },
    ]


def test_a_call_or_a_format_may_be_asked_for_together(
    knows_tools: PreTrainedTokenizerBase, engine: ResidentModel
) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
    schema |= {"additionalProperties": False}
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    kinds = set()
    for seed in range(8):
        result = run(
            engine,
            inputs=CHAT,
            tools=[PAINT],
            parallel_tool_calls=False,
            parameters={**DRAWN, "seed": seed, "response_format": response_format},
        )
        kinds.add(result["finish_reason"])
        if "tool_calls" not in result:
            assert set(json.loads(result["generated_text"])) == {"wet"}
    assert kinds == {"stop", "tool_calls"}, "a random model does now the one, now the other"
    with pytest.raises(InvalidRequest, match="'regex' and `tools` exclude each other"):
        run(engine, inputs=CHAT, tools=[PAINT], parameters={"response_format": {"type": "regex", "regex": "a"}})


def test_a_function_that_cannot_be_enforced_is_named(engine: ResidentModel) -> None:
    """With `strict`; without it, the keyword is ignored, as OpenAI does."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    lenient, strict = (
        [PAINT, {"type": "function", "function": {**function, "strict": is_strict}}] for is_strict in (False, True)
    )
    run(engine, inputs=CHAT, tools=lenient, tool_choice="required", parameters={"max_new_tokens": 2})
    with pytest.raises(InvalidRequest, match=r"`tools\.1\.function.parameters` cannot be followed") as refused:
        run(engine, inputs=CHAT, tools=strict, tool_choice="required")
    assert refused.value.param == "tools.1.function.parameters"


def test_a_tokenizer_may_describe_its_calls_itself(folder: Path) -> None:
    """What it describes is found, whatever it looks like; anything else is left to the widespread forms."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "assistant: ",
        "fields": {
            "tool_calls": {
                "open": "<<",
                "close": ">>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"content": "text"},
        },
    }
    tools = spec_of(inputs=CHAT, tools=[PAINT]).tools

    def read(text: str) -> Any:
        prompt, written = (tokenizer(part).input_ids for part in ("user: the sea\nassistant: ", text))
        return read_by_template(tokenizer, prompt, written, tools)

    said, (call,) = read('the wall <<{"name": "paint", "arguments": {"colour": "red", "coats": 2}}>>')
    assert (said.strip(), call.name) == ("the wall", "paint")
    assert json.loads(call.arguments) == {"colour": "red", "coats": 2}
    assert read("the wall is red") is None
    assert read('<<{"name": ') is None


def test_the_form_of_a_call_is_the_templates() -> None:
    assert call_form(HERMES_TEMPLATE) is HERMES
    assert (
        call_form('tools {"name": function name, "parameters": dictionary of argument name and its value}') is LLAMA
    )
    assert call_form("[AVAILABLE_TOOLS] tools") is PLAIN
    assert call_form("{{ messages }}") is HERMES


# Plain prompts


def test_several_prompts_are_answered_in_order(engine: ResidentModel) -> None:
    prompts = [samples.SENTENCES[number] for number in (0, 3, 5)]
    attempt = Events()
    parameters = {"max_new_tokens": 6, "temperature": 1.0, "seed": 5}
    together = run(engine, attempt, inputs=prompts, stream=True, parameters={**parameters, "n": 2})
    alone = [run(engine, inputs=prompt, parameters={**parameters, "n": 2}) for prompt in prompts]
    texts = [choice["generated_text"] for choice in together["choices"]]
    assert texts == [choice["generated_text"] for each in alone for choice in each["choices"]]
    assert together["prompt_tokens"] == sum(each["prompt_tokens"] for each in alone)
    told: defaultdict[int, str] = defaultdict(str)
    for event, data in attempt.told:
        assert event == "tokens"
        told[data["index"]] += data["text"]
    assert [told[index] for index in range(6)] == texts


def test_token_ids_are_read_as_they_are(engine: ResidentModel) -> None:
    assert engine.tokenizer is not None
    ids = list(engine.tokenizer(PROMPT).input_ids)
    attempt = Events()
    parameters = {"max_new_tokens": 6, "return_full_text": True}
    by_ids = run(engine, attempt, inputs=ids, stream=True, parameters=parameters)
    assert by_ids["generated_text"] == run(engine, inputs=PROMPT, parameters=parameters)["generated_text"]
    assert "".join(data["text"] for _, data in attempt.told) == by_ids["generated_text"]
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        run(engine, inputs=[10**6])


@pytest.mark.parametrize("new_tokens", [0, 3])
def test_a_prompts_own_log_probabilities_are_the_models(engine: ResidentModel, folder: Path, new_tokens: int) -> None:
    """By a forward of the model alone; read in chunks, and though an earlier prompt that began the same is there."""
    assert engine.tokenizer is not None
    prompt = " ".join(samples.SENTENCES)
    ids = list(engine.tokenizer(prompt).input_ids)
    assert len(ids) > 2 * 16, "more than the engine reads in one step"
    parameters = {"max_new_tokens": new_tokens, "return_full_text": True, "logprobs": True, "top_logprobs": 3}
    run(engine, inputs=prompt, parameters={"max_new_tokens": 1})
    result = run(engine, inputs=prompt, parameters={**parameters, "prompt_logprobs": True})
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    first, *told = result["prompt_logprobs"]
    assert (first["id"], first["logprob"]) == (ids[0], None)
    assert [place["id"] for place in told] == ids[1:]
    for place, row in zip(told, expected, strict=False):
        assert place["logprob"] == pytest.approx(row[place["id"]].item(), abs=1e-4)
        assert [other["id"] for other in place["top_logprobs"]] == row.topk(3).indices.tolist()
    assert result["completion_tokens"] == len(result["logprobs"]) == new_tokens
    assert result["reused_tokens"] == 0
    if not new_tokens:
        assert (result["generated_text"], result["finish_reason"]) == (prompt, "length")


def test_a_gap_is_filled_by_a_model_that_was_trained_to(engine: ResidentModel, folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="no fill-in-the-middle tokens") as refused:
        run(engine, inputs=PROMPT, parameters={"suffix": "the end"})
    assert refused.value.param == "parameters.suffix"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer.add_tokens(marks, special_tokens=True)
    read = tokenizer.decode(encode_gap(tokenizer, "the sea", " is blue"))
    assert read == "<|fim_prefix|>the sea<|fim_suffix|> is blue<|fim_middle|>"
