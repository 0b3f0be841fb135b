"""Tells a text's pieces as events of its job while the engine writes it."""

import hashlib
from typing import Any

from tandem.tool_calls import Arguments, CallBegun, Heard, Said, ToolCallReader
from worker.attempt import Attempt
from worker.engine.sequence import Sequence
from worker.engine.tokens.sampler import Chosen
from worker.tasks.token_logprobs import TokenLogprobs

CALL_ID_LETTERS = 24


class TextStream:
    """One text of a job. The engine's thread calls it, and after the text has ended the job's."""

    def __init__(
        self,
        attempt: Attempt,
        choice: int,
        *,
        is_one_of_several: bool,
        reader: ToolCallReader | None,
        logprobs: TokenLogprobs | None,
    ) -> None:
        """With a `reader`, calls are told as `tool_call` events; with `logprobs`, pieces say their tokens."""
        self._attempt = attempt
        self._choice = choice
        self._which = {"index": choice} if is_one_of_several else {}
        self._reader = reader
        self._logprobs = logprobs
        self._before = ""
        """What comes before the text, until it is told."""
        self._told_tokens = 0
        self._sequence: Sequence | None = None

    def begin(self, text: str, sequence: Sequence) -> None:
        """Tell what comes before the text that a sequence will write; before the engine has it.

        Where the log-probabilities of the prompt are asked for, it waits for them: until the text begins.
        """
        self._sequence, self._before = sequence, text
        if not sequence.parameters.prompt_logprobs:
            self._tell_before()

    def tell(self, text: str) -> None:
        self._report([Said(text)] if self._reader is None else self._reader.push(text))

    def finish(self) -> None:
        """Tell what was held back, since it might have become a call; or what nothing came after."""
        self._tell_before()
        if self._reader is not None:
            self._report(self._reader.finish())

    def _tell_before(self) -> None:
        text, self._before = self._before, ""
        if text:
            self._attempt.report("tokens", {"text": text, **self._which, **self._prompt_logprobs()})

    def _report(self, heard: list[Heard]) -> None:
        self._tell_before()
        for each in heard:
            match each:
                case Said(text):
                    self._attempt.report("tokens", {"text": text, **self._which, **self._new_logprobs()})
                case CallBegun(call, name):
                    named = {"id": call_id(self._attempt.job.id, self._choice, call), "name": name, "arguments": ""}
                    self._attempt.report("tool_call", {**self._which, "call": call, **named})
                case Arguments(call, text):
                    self._attempt.report("tool_call", {**self._which, "call": call, "arguments": text})

    def _new_logprobs(self) -> dict[str, Any]:
        """Of the tokens that came since the last piece."""
        if self._logprobs is None:
            return {}
        assert self._sequence is not None
        since = slice(self._told_tokens, len(self._sequence.token_ids))
        self._told_tokens = since.stop
        columns = (self._sequence.token_ids, self._sequence.token_logprobs, self._sequence.top_logprobs)
        places = [Chosen(*place) for place in zip(*(column[since] for column in columns), strict=True)]
        return {"logprobs": self._logprobs.told(places)}

    def _prompt_logprobs(self) -> dict[str, Any]:
        """Of the prompt's tokens, if they are asked for."""
        if self._logprobs is None:
            return {}
        assert self._sequence is not None
        if not self._sequence.parameters.prompt_logprobs:
            return {"logprobs": []}
        return {"logprobs": self._logprobs.of_prompt(self._sequence.prompt_tokens, self._sequence.prompt_logprobs)}


def call_id(job_id: str, choice: int, call: int) -> str:
    """A call's id: the same in every attempt of the job, so that a stream can go on where another was lost."""
    return f"call_{hashlib.sha256(f'{job_id}/{choice}/{call}'.encode()).hexdigest()[:CALL_ID_LETTERS]}"
