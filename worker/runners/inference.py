"""Runs inference jobs: text generation in the continuous batch, encoder tasks in token-budget batches."""

from typing import Any

from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from tandem.errors import AttemptStopped, InvalidRequest
from tandem.specs import ChatMessage, InferenceSpec, TextGenerationSpec
from worker.adapter_cache import AdapterCache
from worker.attempt import Attempt
from worker.engine.sequence import Sequence
from worker.loading import ResidentModel
from worker.residency import ResidentModels

_spec: TypeAdapter[Any] = TypeAdapter(InferenceSpec)


class InferenceRunner:
    def __init__(
        self, residents: ResidentModels[ResidentModel], adapters: AdapterCache, *, adapter_rank: int
    ) -> None:
        self._residents = residents
        self._adapters = adapters
        self._adapter_rank = adapter_rank

    def __call__(self, attempt: Attempt) -> dict[str, Any]:
        spec = _spec.validate_python(attempt.job.spec)
        with self._residents.use((spec.model, spec.task)) as resident:
            if isinstance(spec, TextGenerationSpec):
                return self._generate(attempt, spec, resident)
            assert resident.encoder is not None
            texts = [spec.inputs] if isinstance(spec.inputs, str) else list(spec.inputs)
            rows = resident.encoder.run(texts, spec.parameters, should_stop=attempt.check)
            return {"rows": rows, "prompt_tokens": count_tokens(resident.tokenizer, texts)}

    def _generate(self, attempt: Attempt, spec: TextGenerationSpec, resident: ResidentModel) -> dict[str, Any]:
        assert resident.engine is not None
        prompt = encode_prompt(resident.tokenizer, spec.inputs)
        adapter = None
        if spec.adapter is not None:
            adapter = self._adapters.get(spec.adapter, resident.model, rank_limit=self._adapter_rank)
        sequence = Sequence(
            prompt,
            spec.parameters,
            adapter=adapter,
            deadline=attempt.deadline,
            on_text=(lambda text: attempt.report("tokens", {"text": text})) if spec.stream else None,
        )
        resident.engine.submit(sequence)
        attempt.on_stop(sequence.cancel)
        try:
            generated = sequence.future.result()
        except AttemptStopped:
            # The engine knows only that the sequence was cancelled; the attempt knows why.
            attempt.check()
            raise
        text = generated.text
        if spec.parameters.return_full_text and isinstance(spec.inputs, str):
            text = spec.inputs + text
        return {
            "generated_text": text,
            "finish_reason": generated.finish_reason,
            "prompt_tokens": generated.prompt_tokens,
            "completion_tokens": generated.completion_tokens,
            "path": "engine",
        }


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


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> int:
    return sum(len(ids) for ids in tokenizer(texts).input_ids)
