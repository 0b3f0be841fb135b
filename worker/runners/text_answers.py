"""Makes a text-generation job's result of what was generated: texts, tool calls, tokens, why each ended."""

from collections.abc import Sequence as Many
from dataclasses import replace
from itertools import starmap
from typing import Any

from transformers import PreTrainedTokenizerBase

from tandem.complete_calls import FoundCall
from tandem.specs import TextGenerationSpec
from tandem.specs.tools import MAX_CALLS
from tandem.tool_calls import ToolCallReader, read_tool_calls
from worker.attempt import Attempt
from worker.engine.sequence import Generated
from worker.engine.tokens.sampler import Chosen
from worker.runners.text_stream import TextStream, call_id
from worker.tasks.prompts import Prompt
from worker.tasks.response_template import describes_answers, read_by_template
from worker.tasks.token_logprobs import TokenLogprobs


def without_text(generated: Generated) -> Generated:
    """Of a sequence that was run for its prompt's sake: without the one token that the engine gave it."""
    return replace(
        generated,
        text="",
        token_ids=(),
        finish_reason="length",
        completion_tokens=0,
        token_logprobs=(),
        top_logprobs=(),
    )


class TextAnswers:
    """The texts of one job."""

    def __init__(self, job_id: str, spec: TextGenerationSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        self._job_id = job_id
        self._spec = spec
        self._tokenizer = tokenizer
        self._names = [tool.function.name for tool in spec.offered_tools]
        self._by_template = bool(self._names) and not spec.must_call and describes_answers(tokenizer)
        self._most = 1 if spec.parallel_tool_calls is False else MAX_CALLS
        self._logprobs = TokenLogprobs(tokenizer)
        self._count = len(spec.prompts) * spec.parameters.n

    def stream(self, attempt: Attempt, choice: int) -> TextStream | None:
        """What tells one of the texts while it is written, if that is asked for."""
        if not self._spec.stream or self._by_template:
            # What the template describes is known when it is complete; the result is then all that is streamed.
            return None
        return TextStream(
            attempt,
            choice,
            is_one_of_several=self._count > 1,
            reader=ToolCallReader(self._names, most=self._most) if self._names else None,
            logprobs=self._logprobs if self._spec.parameters.logprobs else None,
        )

    def before(self, prompt: Prompt) -> str:
        """What is told before a prompt's texts: the prompt, if that is asked for and it is no chat."""
        if not self._spec.parameters.return_full_text or self._spec.is_chat:
            return ""
        if isinstance(prompt, str):
            return prompt
        tokens = [token for token in prompt if isinstance(token, int)]
        text = self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "a list of texts comes of a list of lists only"
        return text

    def result(self, generated: Many[Generated], prompts: Many[tuple[int, ...]]) -> dict[str, Any]:
        """The job's result, of all its texts in order: of one its fields, of several `choices` with these each.

        `prompts` are the token ids that each came after.
        """
        rows = zip(generated, prompts, strict=True)
        return self._joined([self._row(number, each, prompt) for number, (each, prompt) in enumerate(rows)])

    def of_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The same of the library's rows, in which calls are not found, and prompts of token ids not told."""
        for number, row in enumerate(rows):
            prompt = self._prompt_of(number)
            if not isinstance(prompt, str):
                row["generated_text"] = self.before(prompt) + row["generated_text"]
            if self._names:
                read = read_tool_calls(row["generated_text"], self._names, most=self._most)
                row |= self._calls(number, *read, row["finish_reason"])
        return self._joined(rows)

    def _prompt_of(self, number: int) -> Prompt:
        return self._spec.prompts[number // self._spec.parameters.n]

    def _row(self, number: int, generated: Generated, prompt: tuple[int, ...]) -> dict[str, Any]:
        """One text's fields of the result."""
        if not self._spec.parameters.max_new_tokens:
            generated = without_text(generated)
        row: dict[str, Any] = {
            "generated_text": self.before(self._prompt_of(number)) + generated.text,
            "finish_reason": generated.finish_reason,
            "prompt_tokens": generated.prompt_tokens,
            "reused_tokens": generated.reused_tokens,
            "completion_tokens": generated.completion_tokens,
            "path": "engine",
        }
        if self._names:
            row |= self._with_calls(number, generated, prompt)
        if self._spec.parameters.logprobs:
            places = zip(generated.token_ids, generated.token_logprobs, generated.top_logprobs, strict=True)
            row["logprobs"] = self._logprobs.told(starmap(Chosen, places))
        if self._spec.parameters.prompt_logprobs:
            row["prompt_logprobs"] = self._logprobs.of_prompt(prompt, generated.prompt_logprobs)
        return row

    def _with_calls(self, number: int, generated: Generated, prompt: tuple[int, ...]) -> dict[str, Any]:
        read = None
        if self._by_template:
            read = read_by_template(self._tokenizer, prompt, generated.token_ids, self._spec.offered_tools)
        if read is None:
            read = read_tool_calls(generated.text, self._names, most=self._most)
        return self._calls(number, *read, generated.finish_reason)

    def _calls(self, number: int, said: str, found: tuple[FoundCall, ...], finish_reason: str) -> dict[str, Any]:
        """The fields that the calls in a text change."""
        if not found:
            return {}
        calls = [
            {
                "id": call_id(self._job_id, number, place),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for place, call in enumerate(found[: self._most])
        ]
        # A text that was cut off may have been cut in a call.
        reason = "tool_calls" if finish_reason == "stop" else finish_reason
        return {"generated_text": said, "tool_calls": calls, "finish_reason": reason}

    def _joined(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if len(rows) == 1:
            return rows[0]
        shared = {"prompt_tokens", "reused_tokens", "path"}
        of_prompts = rows[:: self._spec.parameters.n]
        # The other choices of a prompt have it once more, which nobody is charged for.
        counts = [name for name in ("prompt_tokens", "reused_tokens") if name in rows[0]]
        return {
            "choices": [{name: value for name, value in row.items() if name not in shared} for row in rows],
            **{name: sum(row[name] for row in of_prompts) for name in counts},
            "completion_tokens": sum(row["completion_tokens"] for row in rows),
            "path": rows[0]["path"],
        }
