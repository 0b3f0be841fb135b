"""Runs text-generation jobs: in the continuous batch, or by the library for models that the engine cannot hold."""

import hashlib
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from itertools import starmap
from typing import Any, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from tandem.errors import AttemptStopped, InvalidRequest, UnsupportedTask
from tandem.specs import PRIORITIES, ChatMessage, GenerationParameters, TextGenerationSpec
from tandem.specs.response_format import TextFormat
from worker.adapter_cache import AdapterCache
from worker.attempt import Attempt
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.sequence import Generated, Sequence
from worker.engine.tokens.sampler import Chosen
from worker.loading import ResidentModel
from worker.media.reader import MediaReader
from worker.tasks.text_generation import TextGenerationByGenerate
from worker.tasks.token_logprobs import token_logprobs

ResultT = TypeVar("ResultT")


class TextGenerationRunner:
    """One job is one prompt: `n` texts for it are as many sequences, submitted together."""

    def __init__(self, adapters: AdapterCache[AdapterWeights]) -> None:
        self._adapters = adapters

    def run(
        self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel, media: MediaReader
    ) -> dict[str, Any]:
        """The job's result: of one text its fields, of several `choices` with these fields each.

        Raises InvalidRequest and its kinds for what cannot run, and what stopped the attempt.
        """
        if resident.engine is None:
            return self._by_library(attempt, spec, resident, media)
        return self._by_engine(attempt, spec, resident)

    def _by_engine(self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel) -> dict[str, Any]:
        assert resident.engine is not None
        assert resident.tokenizer is not None
        prompt = encode_prompt(resident.tokenizer, spec.inputs)
        adapter = None if spec.adapter is None else self._adapters.get(spec.adapter, resident.model)
        sequences = [
            self._sequence(attempt, spec, prompt, resident, adapter=adapter, choice=choice)
            for choice in range(spec.parameters.n)
        ]
        submitted: list[Sequence] = []
        try:
            for sequence in sequences:
                resident.engine.submit(sequence)
                submitted.append(sequence)
                attempt.on_stop(sequence.cancel)
            generated = _results([sequence.future for sequence in submitted])
        except AttemptStopped:
            # The engine knows only that a sequence was cancelled; the attempt knows why.
            attempt.check()
            raise
        finally:
            # A failure of one ends the others, which must not go on for nobody; what has ended stays as it is.
            for sequence in submitted:
                sequence.cancel()
        return _joined([_row(each, spec, resident.tokenizer) for each in generated])

    def _sequence(
        self,
        attempt: Attempt,
        spec: TextGenerationSpec,
        prompt: list[int],
        resident: ResidentModel,
        *,
        adapter: AdapterWeights | None,
        choice: int,
    ) -> Sequence:
        which = {} if spec.parameters.n == 1 else {"index": choice}

        constraint = None
        if spec.parameters.response_format is not None:
            # Compiled here, in the job's thread: the sequences that run meanwhile do not wait for it.
            assert resident.constraints is not None
            constraint = resident.constraints.compile(spec.parameters.response_format)

        def tell(text: str) -> None:
            attempt.report("tokens", {"text": text, **which})

        return Sequence(
            prompt,
            choice_parameters(spec.parameters, choice),
            adapter=adapter,
            constraint=constraint,
            deadline=attempt.deadline,
            priority=PRIORITIES.index(attempt.job.priority),
            owner=attempt.job.owner,
            on_text=tell if spec.stream else None,
        )

    def _by_library(
        self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel, media: MediaReader
    ) -> dict[str, Any]:
        """For a model that the engine cannot hold, as its result says. It streams nothing.

        Raises UnsupportedTask for an adapter and for a response format.
        """
        if spec.adapter is not None:
            raise UnsupportedTask(
                f"{spec.model!r} is served by the library's generate(), which takes no adapters", param="adapter"
            )
        if not isinstance(spec.parameters.response_format, TextFormat | None):
            raise UnsupportedTask(
                f"{spec.model!r} is served by the library's generate(), which follows no `response_format`; leave it "
                "out",
                param="parameters.response_format",
            )
        batcher = resident.batchers.get(spec.task)
        task = cast("TextGenerationByGenerate", batcher.task)
        prompt = task.read(spec.inputs, media, "inputs")
        choices: list[Future[list[Any]]] = []
        try:
            for choice in range(spec.parameters.n):
                parameters = choice_parameters(spec.parameters, choice)
                choices.append(batcher.submit([prompt], parameters, should_stop=attempt.check))
            return _joined([row for (row,) in _results(choices)])
        finally:
            for future in choices:
                future.cancel()


def choice_parameters(parameters: GenerationParameters, choice: int) -> GenerationParameters:
    """The parameters of one of `n` texts. The first has the job's own seed, so that it is the text of `n` = 1.

    The others' seeds are hashes of it and their number: of neighbouring seeds, no two choices are the same.
    """
    if choice == 0 or parameters.seed is None:
        return parameters
    digest = hashlib.sha256(f"{parameters.seed}/{choice}".encode()).digest()
    seed = int.from_bytes(digest[:8]) >> 1  # below 2**63, as seeds are
    return parameters.model_copy(update={"seed": seed})


def encode_prompt(tokenizer: PreTrainedTokenizerBase, inputs: str | tuple[ChatMessage, ...]) -> list[int]:
    """Token ids of a plain prompt, or of a conversation by the model's own chat template.

    Raises InvalidRequest if the model has no template, or if the template refuses the messages.
    """
    if isinstance(inputs, str):
        return list(tokenizer(inputs).input_ids)
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "`inputs` are messages, but the model has no chat template; send one text", param="inputs"
        )
    try:
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in inputs], tokenize=False, add_generation_prompt=True
        )
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"`inputs`: the model's chat template refuses them: {error}", param="inputs") from error
    # The template writes the special tokens itself.
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _row(generated: Generated, spec: TextGenerationSpec, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One text's fields of the result."""
    prompt = spec.inputs if spec.parameters.return_full_text and isinstance(spec.inputs, str) else ""
    row: dict[str, Any] = {
        "generated_text": prompt + generated.text,
        "finish_reason": generated.finish_reason,
        "prompt_tokens": generated.prompt_tokens,
        "completion_tokens": generated.completion_tokens,
        "path": "engine",
    }
    if spec.parameters.logprobs:
        places = zip(generated.token_ids, generated.token_logprobs, generated.top_logprobs, strict=True)
        row["logprobs"] = token_logprobs(tokenizer, starmap(Chosen, places))
    return row


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The job's result from its texts: one is the result, several are its `choices`."""
    if len(rows) == 1:
        return rows[0]
    shared = {"prompt_tokens", "path"}
    return {
        "choices": [{name: value for name, value in row.items() if name not in shared} for row in rows],
        "prompt_tokens": rows[0]["prompt_tokens"],
        "completion_tokens": sum(row["completion_tokens"] for row in rows),
        "path": rows[0]["path"],
    }


def _results(futures: list[Future[ResultT]]) -> list[ResultT]:
    """All results, in order; raises as soon as one has failed."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]
