"""Which tokens of a row are learned, checked against the rendered text."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tandem.errors import InvalidTrainingData
from tandem.specs import ChatRow, CompletionRow, TextGenerationSpec, TrainingRow
from tandem.specs.training_rows import TextRow
from tests.unit.training.tiny import CHATML, SYSTEM, chat, chatml_tokenizer, encode_texts
from worker.tasks.prompts import chat_text
from worker.training.data import DataReport, Example, PaddedBatch

TOKENIZER = chatml_tokenizer()
GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
REWRITES_HISTORY = CHATML.replace(
    "message['content']", "(message['content'] if loop.last or message['role'] == 'user' else '(earlier)')"
)
REFUSES = "{{ raise_exception('Conversation roles must alternate') }}"
"""A template that refuses every conversation, in the words that several published templates use."""


def encode(row: TrainingRow, tokenizer: PreTrainedTokenizerFast = TOKENIZER, max_tokens: int = 200) -> Example:
    (example,) = encode_texts([row], tokenizer, max_tokens).examples
    return example


def text(example: Example) -> str:
    return TOKENIZER.decode(example.input_ids)


def answers(example: Example) -> list[str]:
    """The stretches of text that carry loss, in order."""
    stretches: list[list[int]] = []
    previous = -100
    for label in example.labels:
        if label != -100:
            if previous == -100:
                stretches.append([])
            stretches[-1].append(label)
        previous = label
    return [TOKENIZER.decode(stretch) for stretch in stretches]


def test_a_chats_answer_and_its_end_of_turn_are_learned() -> None:
    """The template's default system message and the question carry no loss."""
    example = encode(chat("red", "stop"))
    prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"
    assert text(example) == prompt + "stop<|im_end|>"
    assert answers(example) == ["stop<|im_end|>"]


def test_what_comes_before_an_answer_is_the_prompt_that_is_served() -> None:
    """The unlearned tokens are exactly those that serving makes of the conversation so far."""
    row = chat("red", "stop")
    example = encode(row)
    served = TOKENIZER.apply_chat_template(
        [message.model_dump() for message in row.messages[:-1]], add_generation_prompt=True, return_dict=False
    )
    unlearned = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label == -100]
    assert unlearned == served


def test_every_answer_of_a_conversation_is_learned() -> None:
    example = encode(chat("red", "stop", "green", "go"))
    assert answers(example) == ["stop<|im_end|>", "go<|im_end|>"]


def test_a_given_system_message_takes_the_defaults_place() -> None:
    messages = [("system", "Be brief."), ("user", "red"), ("assistant", "stop")]
    row = ChatRow.model_validate({"messages": [{"role": role, "content": content} for role, content in messages]})
    example = encode(row)
    assert text(example).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert answers(example) == ["stop<|im_end|>"]


def test_an_opening_word_of_the_assistant_answers_nothing() -> None:
    """It stays in the text, without loss."""
    example = encode(chat("Hello!", "red", "stop", first="assistant"))
    assert "Hello!" in text(example)
    assert answers(example) == ["stop<|im_end|>"]


def test_generation_blocks_of_a_template_say_what_is_learned() -> None:
    example = encode(chat("red", "stop", "green", "go"), chatml_tokenizer(GENERATION))
    assert answers(example) == ["stop<|im_end|>", "go<|im_end|>"]


def test_a_completion_and_the_end_of_text_are_learned() -> None:
    example = encode(CompletionRow(prompt="red means ", completion="stop"))
    assert text(example) == "red means stop<|im_end|>"
    assert answers(example) == ["stop<|im_end|>"]


def test_a_tokenizers_first_token_is_kept_before_a_prompt() -> None:
    """Where plain prompts begin with a special token when they are served, they do so here, once, unlearned."""
    tokenizer = chatml_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", 1)]
    )
    example = encode(CompletionRow(prompt="red means ", completion="stop"), tokenizer)
    assert list(example.input_ids[:-1]) == tokenizer.encode("red means stop")
    assert example.input_ids.count(1) == 1
    assert answers(example) == ["stop<|im_end|>"]


def test_without_a_prompt_the_first_token_cannot_be_learned() -> None:
    """Nothing comes before it that could predict it."""
    example = encode(CompletionRow(prompt="", completion="stop"))
    assert example.labels[0] == -100
    assert example.labels[1:] == example.input_ids[1:]


@given(st.lists(st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=12)), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_text_is_cut_exactly_at_its_answers(turns: list[tuple[str, str]]) -> None:
    """Also where an answer begins or ends with white space, and merges with what stands around it: the learned
    tokens decode to the answers, and all tokens to the rendered text."""
    contents = [content for asked, answer in turns for content in (asked, answer + "!")]
    row = chat(*contents)
    example = encode(row, max_tokens=5000)
    whole = TOKENIZER.apply_chat_template([message.model_dump() for message in row.messages], tokenize=False)
    assert text(example) + "\n" == whole
    assert answers(example) == [answer + "!<|im_end|>" for _, answer in turns]


def test_a_token_across_the_border_is_split() -> None:
    """The newline that ends the prompt and the first of the answer would be one token: when the model is served it
    sees the prompt's newline alone, and so it does here."""
    alone, joined = TOKENIZER.encode("assistant\n"), TOKENIZER.encode("assistant\n\n\nstop")
    assert joined[: len(alone)] != alone, "the case needs a tokenizer that merges newlines"
    example = encode(chat("red", "\n\nstop"))
    assert answers(example) == ["\n\nstop<|im_end|>"]
    assert list(example.input_ids[: example.labels.count(-100)])[-len(alone) :] == alone


def test_long_rows_are_cut_and_rows_without_an_answer_left_are_dropped() -> None:
    short, cut = CompletionRow(prompt="red ", completion="go"), CompletionRow(prompt="red ", completion="go " * 30)
    gone = CompletionRow(prompt="red " * 30, completion="go")
    data = encode_texts([short, cut, gone], TOKENIZER, 16)
    tokens = [len(example.input_ids) for example in data.examples]
    learned = [sum(label != -100 for label in example.labels) for example in data.examples]
    assert tokens[1] == 16
    assert tokens[0] < 16
    assert data.report == DataReport(
        lines=3,
        rows=3,
        tokens=sum(tokens),
        longest_tokens=16,
        mean_tokens=sum(tokens) / 2,
        answer_tokens=sum(learned),
        truncated_rows=2,
        dropped_rows=1,
        duplicate_rows=0,
        broken_rows=0,
        errors=(),
    )


def error_of(rows: Sequence[TrainingRow], tokenizer: PreTrainedTokenizerFast, **limits: int) -> InvalidTrainingData:
    with pytest.raises(InvalidTrainingData) as raised:
        encode_texts(rows, tokenizer, limits.get("max_tokens", 200), param="validation_file")
    assert raised.value.param == "validation_file"
    return raised.value


def test_a_template_that_rewrites_history_is_refused_by_row() -> None:
    """Its earlier answers cannot be found in the whole; the message says what to do."""
    rows = [chat("red", "stop"), chat("red", "stop", "green", "go")]
    error = error_of(rows, chatml_tokenizer(REWRITES_HISTORY))
    assert error.message.startswith("row 2: message 2 is rendered differently")
    assert "split the conversation" in error.message


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    error = error_of([chat("red", "stop")], chatml_tokenizer(REFUSES))
    assert error.message == "row 1: the model's chat template refuses the conversation: " + (
        "Conversation roles must alternate"
    )


def test_a_chat_needs_a_chat_template() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = None
    rows = [CompletionRow(prompt="red", completion="stop"), chat("red", "stop")]
    assert error_of(rows, tokenizer).message.startswith("row 2: it is a chat, but")


def test_a_file_of_which_nothing_is_left_is_refused() -> None:
    rows = [CompletionRow(prompt="red " * 30, completion="go")] * 2
    message = error_of(rows, TOKENIZER, max_tokens=16).message
    assert "none of the 2 rows" in message
    assert "raise hyperparameters.max_tokens" in message
    assert "no rows" in error_of([], TOKENIZER).message


def test_batches_are_padded_on_the_right_to_their_longest_row() -> None:
    batch = PaddedBatch(TOKENIZER)([Example((5, 6, 7), (-100, 6, 7)), Example((8, 9), (-100, 9))])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, TOKENIZER.pad_token_id]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_of_a_plain_text_all_is_learned() -> None:
    """With the end of the sequence; its first token follows nothing, so nothing predicts it."""
    row = TextRow(text="red means stop")
    example = encode(row)
    assert text(example) == "red means stop<|im_end|>"
    assert example.labels == (-100, *example.input_ids[1:])


def test_an_answer_of_weight_0_is_not_learned() -> None:
    """Not even with a template that marks what the assistant says."""
    row = ChatRow.model_validate(
        {
            "messages": [
                {"role": "user", "content": "red"},
                {"role": "assistant", "content": "go", "weight": 0},
                {"role": "user", "content": "red"},
                {"role": "assistant", "content": "stop"},
            ]
        }
    )
    for tokenizer in (TOKENIZER, chatml_tokenizer(GENERATION + ASKS)):
        assert answers(encode(row, tokenizer)) == ["stop<|im_end|>"]


TOOL = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "light", "arguments": '{"colour": "red"}'}}
WITH_TOOLS = ChatRow.model_validate(
    {
        "messages": [
            {"role": "user", "content": "red"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "stop"},
            {"role": "assistant", "content": "stop"},
        ],
        "tools": [TOOL],
    }
)
KNOWS_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% if message.tool_calls %}{{ '<call>' + message.tool_calls[0]['function']['arguments']['colour'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + ASKS
)


def test_tools_and_calls_are_rendered_by_a_template_that_knows_them() -> None:
    """The call is an answer like another: it is learned, and the functions' description is not."""
    example = encode(WITH_TOOLS, chatml_tokenizer(KNOWS_TOOLS), max_tokens=500)
    assert '"name": "light"' in text(example)
    assert answers(example) == ["<call>red<|im_end|>", "stop<|im_end|>"]


def test_a_template_that_knows_no_tools_gets_them_as_texts_as_when_it_serves() -> None:
    example = encode(WITH_TOOLS, max_tokens=900)
    call, last = answers(example)
    assert call == '<tool_call>\n{"name": "light", "arguments": {"colour": "red"}}\n</tool_call><|im_end|>'
    assert last == "stop<|im_end|>"
    prompt = text(example).partition("<tool_call>")[0]
    assert '"name": "light"' in prompt
    served = served_prompt(WITH_TOOLS)
    assert text(example).startswith(served)


def served_prompt(row: ChatRow) -> str:
    """What a job with these tools, that must call one, has the model read."""
    spec = TextGenerationSpec.model_validate(
        {
            "kind": "inference",
            "task": "text-generation",
            "model": "tiny",
            "inputs": [{"role": "user", "content": "red"}],
            "tools": [TOOL],
            "tool_choice": "required",
        }
    )
    return chat_text(TOKENIZER, spec, row.messages[:1])
