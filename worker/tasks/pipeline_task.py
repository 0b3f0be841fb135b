"""A task as transformers' pipeline does it, with the rows of many jobs in one forward.

The library's own preprocessing, forward and postprocessing run; only who shares a forward is decided here. So a job's
result is what the library's call gives, by construction.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.pipelines.base import ChunkPipeline, Pipeline, PipelineException, pad_collate_fn
from transformers.pipelines.pt_utils import PipelineIterator

from tandem.errors import InvalidRequest, TandemError
from tandem.specs import Spec
from worker.media.reader import MediaReader
from worker.tasks.batched_task import BatchedTask, Pause
from worker.tasks.json_values import json_value
from worker.tasks.result_files import ResultFiles
from worker.tasks.written_tokens import draws

SpecParametersT = TypeVar("SpecParametersT", bound=Spec)

REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, PipelineException)
"""What the library raises on an input that it cannot use."""


@dataclass(frozen=True, slots=True, eq=False)
class PipelinePiece:
    """One item of the pipeline's preprocessing, and what it runs with."""

    model_inputs: dict[str, Any]
    cost: int
    company: Hashable
    forward_options: dict[str, Any]
    postprocess_options: dict[str, Any]

    def __len__(self) -> int:
        return self.cost


class PipelineTask(BatchedTask[SpecParametersT, PipelinePiece]):
    """One task on one pipeline. A subclass says how a spec's input and parameters become the library's."""

    together: ClassVar[bool] = True
    """Whether inputs share a forward. Not where the library cannot, or would give other results."""
    generates: ClassVar[bool] = False
    """Whether the forward is a `generate()`, which can stop between two tokens."""
    tokenizer_pads: ClassVar[bool] = True
    """Whether texts of different lengths are padded to share a forward; otherwise only equal shapes do."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline: Any = pipeline
        """Each task's own class, with more in it than `Pipeline` names."""
        self._preprocessing = threading.Lock()
        """The tokenizers library refuses to change padding or truncation while another thread encodes."""
        self._collate = _collate(pipeline)

    # What a subclass says

    def read(self, value: Any, media: MediaReader, param: str) -> Any:  # noqa: ARG002 - for subclasses
        """The pipeline's input from one of the spec's; `media` decodes what is in it.

        Runs in the job's thread. Raises InvalidRequest naming `param` or a field in it.
        """
        return value

    def options(self, parameters: SpecParametersT) -> dict[str, Any]:
        """The pipeline's keyword arguments from the spec's parameters: those that are set, by the same names."""
        return {name: value for name, value in parameters.model_dump().items() if value is not None}

    def present(self, result: Any, files: ResultFiles) -> Any:  # noqa: ARG002 - for subclasses
        """The job's row from the pipeline's output; `files` stores what is no JSON. Runs in the job's thread."""
        return json_value(result)

    def cost(self, model_inputs: dict[str, Any]) -> int:
        """A piece's cost in the task's unit: its tokens, or all elements of its largest tensor where it has none."""
        tokens = model_inputs.get("input_ids")
        if isinstance(tokens, torch.Tensor) and tokens.ndim >= 2:
            return max(1, tokens.shape[-1] * tokens.shape[0])
        sizes = [value.numel() for value in model_inputs.values() if isinstance(value, torch.Tensor)]
        return max(1, *sizes) if sizes else 1

    def stopping(self, options: dict[str, Any], criteria: StoppingCriteriaList) -> dict[str, Any]:
        """The forward's options with criteria for its `generate()`; for pipelines that take these among their own."""
        return {**options, "stopping_criteria": criteria}

    def preprocess(self, value: Any, options: dict[str, Any]) -> Any:
        """The pipeline's own first step; for values that it does not know."""
        return self.pipeline.preprocess(value, **options)

    # What the batcher asks

    def encode(
        self, inputs: Sequence[Any], parameters: SpecParametersT, *, first: int = 0
    ) -> list[list[PipelinePiece]]:
        return [self._pieces(value, parameters, f"inputs[{first + place}]") for place, value in enumerate(inputs)]

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        options = dict(pieces[0].forward_options)
        if self.generates:
            options = self.stopping(options, StoppingCriteriaList([_StopsBetweenTokens(pause)]))
        inputs = [dict(piece.model_inputs) for piece in pieces]
        if len(inputs) == 1:
            return [self.pipeline.forward(inputs[0], **options)]
        assert self._collate is not None, "without it every piece is its own company"
        return list(
            PipelineIterator([self._collate(inputs)], self.pipeline.forward, options, loader_batch_size=len(inputs))
        )

    def result(self, outputs: Sequence[Any], pieces: Sequence[PipelinePiece], parameters: SpecParametersT) -> Any:  # noqa: ARG002 - for subclasses
        options = pieces[0].postprocess_options
        if not isinstance(self.pipeline, ChunkPipeline):
            return self.pipeline.postprocess(outputs[0], **options)
        for output in outputs:
            output.pop("is_last", None)
        chunks: Any = list(outputs)  # the base class's type knows nothing of chunks
        return self.pipeline.postprocess(chunks, **options)

    def _pieces(self, value: Any, parameters: SpecParametersT, name: str) -> list[PipelinePiece]:
        with self._preprocessing:
            with refusals_named("parameters"):
                preprocess, forward, postprocess = self._all_options(parameters)
            with refusals_named(name):
                made = self.preprocess(value, preprocess)
                # A ChunkPipeline's is a generator, and does its work while it is read.
                items = list(made) if isinstance(self.pipeline, ChunkPipeline) else [made]
        if not items:
            raise InvalidRequest(f"{name} is empty: there is nothing to run", param=name)
        return [self._piece(item, forward, postprocess) for item in items]

    def _all_options(self, parameters: SpecParametersT) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The options of the pipeline's three steps: its own defaults, and over them the job's."""
        own = self.pipeline._preprocess_params, self.pipeline._forward_params, self.pipeline._postprocess_params
        asked = self.pipeline._sanitize_parameters(**self.options(parameters))
        preprocess, forward, postprocess = ({**default, **given} for default, given in zip(own, asked, strict=True))
        return preprocess, forward, postprocess

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        inputs = dict(item)
        return PipelinePiece(inputs, self.cost(inputs), self._company(inputs, forward), forward, postprocess)

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        if not self.together or self._collate is None or (self.generates and draws(self.pipeline, forward)):
            # What is drawn for a row would change with its company.
            return object()
        return (_frozen(forward), tuple(sorted((name, self._shape(value, inputs)) for name, value in inputs.items())))

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        """What must be equal to share a forward: of a tensor its type and shape, but for a padded text's length."""
        if not isinstance(value, torch.Tensor):
            return type(value).__name__
        shape = [str(size) for size in value.shape]
        mask = inputs.get("attention_mask")
        # Floats are images and sounds, whose sides may be as long as the text by chance.
        is_text = value.ndim >= 2 and not value.is_floating_point()
        if self.tokenizer_pads and isinstance(mask, torch.Tensor) and is_text:
            padded = self.pipeline.tokenizer is not None and self.pipeline.tokenizer.pad_token_id is not None
            if padded and value.shape[:2] == mask.shape:
                shape[1] = "tokens"
        return f"{value.dtype}[{','.join(shape)}]"


class _StopsBetweenTokens(StoppingCriteria):
    """Ends the rows that nobody wants any more, and lets others have the device between two tokens."""

    def __init__(self, pause: Pause) -> None:
        self._pause = pause

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:  # noqa: ARG002
        ended = list(self._pause())
        # A row may be several beams or returned sequences, which lie beside each other.
        each = max(1, input_ids.shape[0] // len(ended))
        flags = [flag for flag in ended for _ in range(each)]
        done: torch.BoolTensor = torch.tensor(flags, dtype=torch.bool, device=input_ids.device)  # type: ignore[assignment]  # torch's stubs name no BoolTensor
        return done


@contextmanager
def refusals_named(name: str) -> Iterator[None]:
    """What the library refuses becomes an InvalidRequest that names the field at fault."""
    try:
        yield
    except TandemError:
        raise
    except Exception as error:
        # The tokenizers library raises bare Exceptions.
        if not isinstance(error, REFUSALS) and type(error) is not Exception:
            raise
        raise InvalidRequest(f"{name} cannot be used: {error}", param=name) from error


def _collate(pipeline: Pipeline) -> Callable[[list[dict[str, Any]]], dict[str, Any]] | None:
    """The library's own padding of several items to one batch; None where it has nothing to pad with."""
    tokenizer, extractor = pipeline.tokenizer, pipeline.feature_extractor or pipeline.image_processor
    if (tokenizer or extractor) is None or (tokenizer is not None and tokenizer.pad_token_id is None):
        return None
    if len({getattr(part, "padding_side", None) for part in (tokenizer, extractor)} - {None}) > 1:
        # It would not know on which side to pad.
        return None
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] = pad_collate_fn(tokenizer, extractor)
    return collate


def _frozen(value: Any) -> Hashable:
    """Equal for equal options; of objects that have no value of their own, for the same object."""
    if isinstance(value, dict):
        return tuple(sorted((str(name), _frozen(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value if isinstance(value, str | int | float | bool | None) else id(value)
