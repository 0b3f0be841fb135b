"""Runs text-generation jobs: in the continuous batch, or by the library for models that the engine cannot hold."""

import hashlib
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from typing import Any, TypeVar, cast

from tandem.errors import AttemptStopped, UnsupportedTask
from tandem.specs import PRIORITIES, GenerationParameters, TextGenerationSpec
from tandem.specs.response_format import TextFormat
from tandem.tool_calls import CLOSE
from worker.adapter_cache import AdapterCache
from worker.apart import ApartAdapter
from worker.attempt import Attempt
from worker.encoders import EncoderBatcher
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Generated, Sequence
from worker.engine.tokens.sampling import Constraint
from worker.media.reader import MediaReader
from worker.resident_model import ResidentModel
from worker.runners.text_answers import TextAnswers
from worker.runners.text_stream import TextStream
from worker.runners.tool_constraint import ToolConstraint
from worker.tasks.prompts import Prompt, encode_prompt, has_calls
from worker.tasks.text_generation import TextGenerationByGenerate
from worker.tasks.truncation import Chat, without_oldest_turns

ResultT = TypeVar("ResultT")


class TextGenerationRunner:
    """One job has one prompt or several; each of the `n` texts of each is a sequence, and all run together."""

    def __init__(self, adapters: AdapterCache[AdapterWeights | ApartAdapter]) -> None:
        self._adapters = adapters

    def run(
        self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel, media: MediaReader
    ) -> dict[str, Any]:
        """The job's result: of one text its fields, of several `choices` with these fields each.

        Raises InvalidRequest and its kinds for what cannot run, and what stopped the attempt.
        """
        if resident.engine is None:
            return self._by_library(attempt, spec, resident, media)
        adapter = None if spec.adapter is None else self._adapters.get(spec.adapter, resident.model)
        if isinstance(adapter, ApartAdapter):
            return self._apart(attempt, spec, resident, media, adapter)
        if adapter is not None:
            resident.engine.engine.pinned_adapters = self._adapters.pinned(resident.entry.name)
        return self._by_engine(attempt, spec, resident, adapter)

    def _by_engine(
        self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel, adapter: AdapterWeights | None
    ) -> dict[str, Any]:
        assert resident.engine is not None
        assert resident.tokenizer is not None
        answers = TextAnswers(attempt.job.id, spec, resident.tokenizer)
        streams: list[TextStream] = []
        sequences: list[Sequence] = []
        for prompt in spec.prompts:
            tokens = _encoded(spec, prompt, resident, adapter)
            for choice in range(spec.parameters.n):
                stream = answers.stream(attempt, len(sequences))
                on_text = None if stream is None or not spec.parameters.max_new_tokens else stream.tell
                sequence = self._sequence(
                    attempt, spec, tokens, resident, adapter=adapter, choice=choice, on_text=on_text
                )
                sequences.append(sequence)
                if stream is not None:
                    stream.begin(answers.before(prompt), sequence)
                    streams.append(stream)
        generated = _run(attempt, resident.engine, sequences)
        for stream in streams:
            stream.finish()
        return answers.result(generated, [sequence.prompt_tokens for sequence in sequences])

    def _sequence(
        self,
        attempt: Attempt,
        spec: TextGenerationSpec,
        prompt: list[int],
        resident: ResidentModel,
        *,
        adapter: AdapterWeights | None,
        choice: int,
        on_text: Callable[[str], None] | None,
    ) -> Sequence:
        return Sequence(
            prompt,
            sequence_parameters(spec, choice),
            adapter=adapter,
            # Compiled here, in the job's thread: the sequences that run meanwhile do not wait for it.
            constraint=compile_constraint(spec, resident),
            deadline=attempt.deadline,
            priority=PRIORITIES.index(attempt.job.priority),
            owner=attempt.job.owner,
            on_text=on_text,
        )

    def _by_library(
        self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel, media: MediaReader
    ) -> dict[str, Any]:
        """For a model that the engine cannot hold, as its result says. It streams nothing.

        Raises UnsupportedTask for an adapter.
        """
        if spec.adapter is not None:
            raise UnsupportedTask(
                f"{spec.model!r} is served by the library's generate(), which takes no adapters", param="adapter"
            )
        return self._by_generate(attempt, spec, resident.batchers.get(spec.task), media, served=resident.entry.name)

    def _apart(
        self,
        attempt: Attempt,
        spec: TextGenerationSpec,
        resident: ResidentModel,
        media: MediaReader,
        adapter: ApartAdapter,
    ) -> dict[str, Any]:
        """With an adapter that the engine's batch cannot hold. It streams nothing."""
        assert resident.apart is not None
        with resident.apart.use(adapter, spec.task) as batcher:
            return self._by_generate(attempt, spec, batcher, media, served=adapter.id)

    def _by_generate(
        self, attempt: Attempt, spec: TextGenerationSpec, batcher: EncoderBatcher, media: MediaReader, *, served: str
    ) -> dict[str, Any]:
        """Raises UnsupportedTask for a response format, and for a call that is not the model's own choice."""
        if not isinstance(spec.parameters.response_format, TextFormat | None):
            raise UnsupportedTask(
                f"{served!r} is served by the library's generate(), which follows no `response_format`; leave it out",
                param="parameters.response_format",
            )
        if spec.parameters.prompt_logprobs or not spec.parameters.max_new_tokens:
            raise UnsupportedTask(
                f"{served!r} is served by the library's generate(), which tells nothing of prompts; ask for new "
                "tokens, without `prompt_logprobs`",
                param="parameters.prompt_logprobs",
            )
        if spec.truncation == "auto":
            raise UnsupportedTask(
                f"{served!r} is served by the library's generate(), which leaves no turns out; leave out "
                "`truncation`, and send a shorter chat",
                param="truncation",
            )
        if spec.must_call:
            raise UnsupportedTask(
                f"{served!r} is served by the library's generate(), which cannot be held to a call; set "
                "`tool_choice` to `auto`",
                param="tool_choice",
            )
        task = cast("TextGenerationByGenerate", batcher.task)
        choices: list[Future[list[Any]]] = []
        try:
            for prompt in spec.prompts:
                read = _read(spec, prompt, task, media)
                for choice in range(spec.parameters.n):
                    parameters = sequence_parameters(spec, choice)
                    choices.append(batcher.submit([read], parameters, should_stop=attempt.check))
            rows = [row for (row,) in _results(choices)]
        finally:
            for future in choices:
                future.cancel()
        return TextAnswers(attempt.job.id, spec, task.pipeline.tokenizer).of_rows(rows)


def _read(spec: TextGenerationSpec, prompt: Prompt, task: TextGenerationByGenerate, media: MediaReader) -> Any:
    """The library's input; where it has no words for what is asked, the token ids."""
    if spec.parameters.suffix is None and not spec.offered_tools and not has_calls(prompt):
        return task.read(prompt, media, "inputs")
    return encode_prompt(task.pipeline.tokenizer, spec, prompt)


def _encoded(
    spec: TextGenerationSpec, prompt: Prompt, resident: ResidentModel, adapter: AdapterWeights | None
) -> list[int]:
    """A prompt's token ids; a chat may have to leave its oldest turns out."""
    assert resident.engine is not None
    assert resident.tokenizer is not None
    encode = partial(encode_prompt, resident.tokenizer, spec)
    if spec.truncation == "disabled":
        return encode(prompt)
    context = resident.engine.engine.max_context
    virtual = 0 if adapter is None or adapter.prefix is None else adapter.prefix.length
    room = context - virtual - min(spec.parameters.max_new_tokens, context // 2)
    return encode(without_oldest_turns(cast("Chat", prompt), lambda chat: len(encode(chat)) <= room))


def sequence_parameters(spec: TextGenerationSpec, choice: int) -> GenerationParameters:
    """The parameters of one of a prompt's texts."""
    parameters = choice_parameters(spec.parameters, choice)
    if not parameters.max_new_tokens:
        # A sequence ends with a token: it is made, and not told.
        parameters = parameters.model_copy(update={"max_new_tokens": 1})
    if spec.offered_tools and not spec.must_call and spec.parallel_tool_calls is False:
        # One call is enough: what comes behind it would not be told.
        parameters = parameters.model_copy(update={"stop": (*parameters.stop, CLOSE)})
    return parameters


def compile_constraint(spec: TextGenerationSpec, resident: ResidentModel) -> Constraint | None:
    """What the answer must look like: a call, JSON, … . Raises InvalidRequest for what cannot be enforced."""
    response_format = spec.parameters.response_format
    if isinstance(response_format, TextFormat):
        response_format = None
    if response_format is None and not spec.must_call:
        return None
    assert resident.constraints is not None
    assert resident.tokenizer is not None
    if spec.offered_tools:
        return ToolConstraint(resident.constraints, resident.tokenizer).compile(spec)
    assert response_format is not None, "a call that must be has a tool"
    return resident.constraints.compile(response_format)


def choice_parameters(parameters: GenerationParameters, choice: int) -> GenerationParameters:
    """The parameters of one of `n` texts. The first has the job's own seed, so that it is the text of `n` = 1.

    The others' seeds are hashes of it and their number: of neighbouring seeds, no two choices are the same.
    """
    if choice == 0 or parameters.seed is None:
        return parameters
    digest = hashlib.sha256(f"{parameters.seed}/{choice}".encode()).digest()
    seed = int.from_bytes(digest[:8]) >> 1  # below 2**63, as seeds are
    return parameters.model_copy(update={"seed": seed})


def _run(attempt: Attempt, engine: EngineLoop, sequences: list[Sequence]) -> list[Generated]:
    """What all of them come to; if one fails, none goes on. Raises what stopped the attempt."""
    submitted: list[Sequence] = []
    try:
        for sequence in sequences:
            engine.submit(sequence)
            submitted.append(sequence)
            attempt.on_stop(sequence.cancel)
        return _results([sequence.future for sequence in submitted])
    except AttemptStopped:
        # The engine knows only that a sequence was cancelled; the attempt knows why.
        attempt.check()
        raise
    finally:
        # A failure of one ends the others, which must not go on for nobody; what has ended stays as it is.
        for sequence in submitted:
            sequence.cancel()


def _results(futures: list[Future[ResultT]]) -> list[ResultT]:
    """All results, in order; raises as soon as one has failed."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]
