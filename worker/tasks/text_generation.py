"""text-generation by the library's own `generate()`, for models that the engine cannot hold."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from transformers.utils.chat_template_utils import Chat

from tandem.errors import InvalidRequest, PromptTooLong
from tandem.specs import ChatMessage, GenerationParameters
from worker.media.reader import MediaReader
from worker.tasks.batched_task import Pause
from worker.tasks.drawing import drawing
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.text_pipeline_task import TextPipelineTask


class TextGenerationByGenerate(TextPipelineTask[GenerationParameters]):
    """What a model writes after a prompt or a chat, with the fields of the engine's result.

    Prompts with equal parameters share a forward; what is drawn for one is decided by its own seed.
    """

    generates = True

    def read(self, value: str | tuple[ChatMessage, ...], media: MediaReader, param: str) -> Any:  # noqa: ARG002
        if isinstance(value, str):
            return value
        if self.pipeline.tokenizer.chat_template is None:
            raise InvalidRequest(
                f"`{param}` are messages, but the model has no chat template; send one text", param=param
            )
        return Chat([message.model_dump() for message in value])  # type: ignore[arg-type]  # takes a list, says dict

    def options(self, parameters: GenerationParameters) -> dict[str, Any]:
        options: dict[str, Any] = {"max_new_tokens": parameters.max_new_tokens, "do_sample": False}
        if parameters.stop:
            options["stop_sequence"] = list(parameters.stop)
        if parameters.temperature > 0:
            drawn = {"temperature": parameters.temperature, "top_k": parameters.top_k, "top_p": parameters.top_p}
            options |= {"drawing": drawn, "seed": parameters.seed}
        return options

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        options = dict(pieces[0].forward_options)
        drawn = options.pop("drawing", None)
        options.pop("seed", None)
        if drawn is not None:
            seeds = [piece.forward_options["seed"] for piece in pieces]
            options["logits_processor"] = drawing(**drawn, seeds=seeds)
        return super().forward([replace(piece, forward_options=options) for piece in pieces], pause)

    def result(
        self, outputs: Sequence[Any], pieces: Sequence[PipelinePiece], parameters: GenerationParameters
    ) -> dict[str, Any]:
        prompt = outputs[0]["input_ids"].shape[-1]
        ends = self._end_tokens()
        written: list[int] = outputs[0]["generated_sequence"][0, 0, prompt:].tolist()
        # After its own end, a row is filled up to the longest of its batch.
        end = next((place for place, token in enumerate(written) if token in ends), None)
        written = written if end is None else written[: end + 1]
        text: str = self.pipeline.tokenizer.decode(written, skip_special_tokens=True)
        stop = min((text.find(string) for string in parameters.stop if string in text), default=None)
        said = pieces[0].model_inputs["prompt_text"]
        before = said if parameters.return_full_text and isinstance(said, str) else ""
        return {
            "generated_text": before + (text if stop is None else text[:stop]),
            "finish_reason": "length" if end is None and stop is None else "stop",
            "prompt_tokens": self.tokens(pieces[0]),
            "completion_tokens": len(written),
            "path": "generate",
        }

    def _pieces(self, value: object, parameters: GenerationParameters, name: str) -> list[PipelinePiece]:
        pieces = super()._pieces(value, parameters, name)
        for piece in pieces:
            if self.max_tokens is not None and len(piece) > self.max_tokens:
                raise PromptTooLong(
                    f"{name} has {self.tokens(piece)} tokens and {parameters.max_new_tokens} are to be written; the "
                    f"model holds {self.max_tokens} together. Shorten the prompt or lower `max_new_tokens`.",
                    param=name,
                )
        return pieces

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        """Its cost counts what may be written."""
        piece = super()._piece(item, forward, postprocess)
        return replace(piece, cost=len(piece) + forward["max_new_tokens"])

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        # Each row draws by a seed of its own.
        return super()._company(inputs, {name: value for name, value in forward.items() if name != "seed"})

    def _end_tokens(self) -> set[int]:
        ends = self.pipeline.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}
