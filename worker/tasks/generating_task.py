"""A pipeline's task whose model writes: its spec has `generation_parameters`, and its forward is a `generate()`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from transformers import StoppingCriteriaList

from tandem.errors import InvalidRequest, PromptTooLong
from tandem.specs import Spec
from worker.tasks.batched_task import Pause
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask
from worker.tasks.positions import input_positions
from worker.tasks.written_tokens import beams, written_tokens

ParametersT = TypeVar("ParametersT", bound=Spec)


class GeneratingTask(PipelineTask[ParametersT]):
    """Rows share a forward unless tokens are drawn for them."""

    generates = True

    def options(self, parameters: ParametersT) -> dict[str, Any]:
        asked = super().options(parameters)
        generate = asked.pop("generation_parameters")
        return {**asked, "generate_kwargs": {name: value for name, value in generate.items() if value is not None}}

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        """Raises InvalidRequest for what `generate()` refuses: it checks its options when it runs."""
        try:
            return super().forward(pieces, pause)
        except ValueError as error:
            raise InvalidRequest(
                f"the model cannot generate with these parameters: {error}", param="parameters"
            ) from error


class NestedGeneratingTask(GeneratingTask[ParametersT]):
    """Of a pipeline whose forward takes the options of `generate()` apart from its own, as `generate_kwargs`."""

    def stopping(self, options: dict[str, Any], criteria: StoppingCriteriaList) -> dict[str, Any]:
        return {**options, "generate_kwargs": super().stopping(options.get("generate_kwargs", {}), criteria)}


def writing_positions(model: Any) -> int | None:
    """Tokens that the part of a model that writes has places for, prompt and text together; None without a table."""
    return input_positions(model.get_decoder()) if model.can_generate() else None


def require_places(task: PipelineTask[Any], piece: PipelinePiece, places: int | None, name: str) -> None:
    """Raises PromptTooLong for an input called `name` whose prompt and text could be more than `places` tokens.

    Beyond its table a model fails, and on a GPU it takes the process with it.
    """
    if places is None:
        return
    prompt = piece.model_inputs.get("input_ids")
    tokens = 0 if prompt is None else prompt.shape[-1]
    written = written_tokens(task.pipeline, piece.forward_options)
    if tokens + written > places:
        raise PromptTooLong(
            f"{name} has a prompt of {tokens} tokens and {written} may be written; the model holds {places} "
            "together. Shorten the prompt or ask for fewer `max_new_tokens`.",
            param=name,
        )


def with_written_cost(task: PipelineTask[Any], piece: PipelinePiece) -> PipelinePiece:
    """The piece, its cost in tokens counting what may be written too, for every beam."""
    forward = piece.forward_options
    tokens = len(piece) + written_tokens(task.pipeline, forward)
    return replace(piece, cost=tokens * beams(task.pipeline, forward))
