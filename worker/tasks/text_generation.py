"""text-generation by the library's own `generate()`, for models that the engine cannot hold.

`generate()` runs the model; what is chosen, and when a text ends, is decided as in the engine and by the same code.
So the same parameters mean the same on both paths.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.utils.chat_template_utils import Chat

from tandem.errors import InvalidRequest, PromptTooLong
from tandem.specs import ChatMessage, GenerationParameters
from worker.engine.tokens.sampler import choose
from worker.engine.tokens.sampling import Sampling
from worker.media.reader import MediaReader
from worker.tasks.batched_task import Pause
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.prompts import Prompt
from worker.tasks.text_pipeline_task import TextPipelineTask
from worker.tasks.token_logprobs import token_logprobs
from worker.tasks.written_text import WrittenText


class TextGenerationByGenerate(TextPipelineTask[GenerationParameters]):
    """What a model writes after a prompt or a chat, with the fields of the engine's result.

    Prompts with the same `max_new_tokens` share a forward; all else is each row's own.
    """

    generates = True

    def read(self, value: Prompt, media: MediaReader, param: str) -> Any:  # noqa: ARG002
        if isinstance(value, str):
            return value
        messages = [part for part in value if isinstance(part, ChatMessage)]
        if not messages:
            return list(value)
        if self.pipeline.tokenizer.chat_template is None:
            raise InvalidRequest(
                f"`{param}` are messages, but the model has no chat template; send one text", param=param
            )
        return Chat([message.for_template() for message in messages])  # type: ignore[arg-type]  # takes a list, says dict

    def preprocess(self, value: Any, options: dict[str, Any]) -> Any:
        """Token ids need none."""
        if not isinstance(value, list):
            return super().preprocess(value, options)
        tokens = torch.tensor([value])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "prompt_text": value}

    def options(self, parameters: GenerationParameters) -> dict[str, Any]:
        return {
            "max_new_tokens": parameters.max_new_tokens,
            "do_sample": False,
            # What the model's generation config says of these is not asked for here, as in the engine. Ends are ours.
            "repetition_penalty": 1.0,
            "eos_token_id": None,
            "parameters": parameters,
        }

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        """Adds what was written to each output, as `written`."""
        rows = [self._written(piece) for piece in pieces]
        options = {name: value for name, value in pieces[0].forward_options.items() if name != "parameters"}
        options["rows"] = rows
        outputs = super().forward([replace(piece, forward_options=options) for piece in pieces], pause)
        return [{**output, "written": row} for output, row in zip(outputs, rows, strict=True)]

    def stopping(self, options: dict[str, Any], criteria: StoppingCriteriaList) -> dict[str, Any]:
        rows = options.pop("rows")
        return {
            **super().stopping(options, StoppingCriteriaList([*criteria, _EndsByItsOwnRules(rows)])),
            "logits_processor": LogitsProcessorList([_ChoosesByItsOwnRules(rows)]),
        }

    def result(
        self, outputs: Sequence[Any], pieces: Sequence[PipelinePiece], parameters: GenerationParameters
    ) -> dict[str, Any]:
        written: WrittenText = outputs[0]["written"]
        said = pieces[0].model_inputs["prompt_text"]
        before = said if parameters.return_full_text and isinstance(said, str) else ""
        result: dict[str, Any] = {
            "generated_text": before + written.text,
            "finish_reason": written.finish_reason,
            "prompt_tokens": self.tokens(pieces[0]),
            "completion_tokens": len(written.chosen),
            "path": "generate",
        }
        if parameters.logprobs:
            result["logprobs"] = token_logprobs(self.pipeline.tokenizer, written.chosen)
        return result

    def _pieces(self, value: object, parameters: GenerationParameters, name: str) -> list[PipelinePiece]:
        pieces = super()._pieces(value, parameters, name)
        for piece in pieces:
            if self.max_tokens is not None and len(piece) > self.max_tokens:
                raise PromptTooLong(
                    f"{name} has {self.tokens(piece)} tokens and {parameters.max_new_tokens} are to be written; the "
                    f"model holds {self.max_tokens} together. Shorten the prompt or lower `max_new_tokens`.",
                    param=name,
                )
            self._sampling(piece)  # refuses tokens that the model does not have, while the job can be told
        return pieces

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        """Its cost counts what may be written."""
        piece = super()._piece(item, forward, postprocess)
        return replace(piece, cost=len(piece) + forward["max_new_tokens"])

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        return super()._company(inputs, {name: value for name, value in forward.items() if name != "parameters"})

    def _written(self, piece: PipelinePiece) -> WrittenText:
        """A row's text before its first token. Made for each forward: one that fails is begun anew, in halves."""
        return WrittenText(
            self.pipeline.tokenizer, _prompt(piece), piece.forward_options["parameters"], self._sampling(piece)
        )

    def _sampling(self, piece: PipelinePiece) -> Sampling:
        return Sampling(
            piece.forward_options["parameters"],
            _prompt(piece),
            vocabulary=self.pipeline.model.config.get_text_config().vocab_size,
            end_tokens=self._end_tokens(),
        )

    def _end_tokens(self) -> frozenset[int]:
        ends = self.pipeline.model.generation_config.eos_token_id
        if ends is None:
            return frozenset()
        return frozenset(ends if isinstance(ends, list) else [ends])


def _prompt(piece: PipelinePiece) -> list[int]:
    tokens: list[int] = piece.model_inputs["input_ids"][0].tolist()
    return tokens


class _ChoosesByItsOwnRules(LogitsProcessor):
    """Leaves each row of a greedy `generate()` only the token that its sampling chooses."""

    def __init__(self, rows: Sequence[WrittenText]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
        chosen = choose(scores, [row.sampling for row in self._rows])
        for row, each in zip(self._rows, chosen, strict=True):
            if row.finish_reason is None:
                row.add(each)
        tokens = torch.tensor([[each.token] for each in chosen], device=scores.device)
        left: torch.FloatTensor = torch.zeros_like(scores).scatter(1, tokens, 1.0)  # type: ignore[assignment]  # a Tensor to torch's stubs
        return left


class _EndsByItsOwnRules(StoppingCriteria):
    """Ends the rows whose text has ended."""

    def __init__(self, rows: Sequence[WrittenText]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:  # noqa: ARG002
        ended = [row.finish_reason is not None for row in self._rows]
        done: torch.BoolTensor = torch.tensor(ended, device=input_ids.device)  # type: ignore[assignment]  # torch's stubs name no BoolTensor
        return done
