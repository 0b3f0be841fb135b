"""The endpoints whose requests may be the rows of a batch: what a body must be, and what its answer looks like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from api.batches.request_lines import invalid_fields
from api.routes.openai.chat_answer import chat_completion
from api.routes.openai.chat_request import ChatRequest
from api.routes.openai.completion_answer import text_completion
from api.routes.openai.completion_request import CompletionRequest
from api.routes.openai.embeddings_answer import EmbeddingsRequest, embeddings_answer
from api.routes.openai.field_names import OWN_NAMES
from api.routes.openai.response_answer import response_answer
from api.routes.openai.response_request import FIELD_NAMES, ResponseRequest
from tandem.errors import InvalidRequest
from tandem.specs import AnyInferenceSpec
from tandem.specs.batch import BatchEndpoint

Body = Any
"""A request of one endpoint, as its own model."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    request: type[BaseModel]
    """What the route itself takes."""
    spec: Callable[[Body], AnyInferenceSpec]
    """The job that a request stands for."""
    answer: Callable[[Body, Any, str, float], BaseModel]
    """The body of the answer, from the request, its job's result, the row's id and when it was answered (seconds
    since the epoch). Raises InvalidRequest for what only the result tells."""
    inputs: str
    """What the request calls a job's inputs."""
    names: Mapping[str, str] = field(default_factory=lambda: OWN_NAMES)
    """Fields of a job's spec that the request calls otherwise."""
    refused: tuple[str, ...] = ("stream",)
    """Parameters that the route takes and a batch cannot."""

    def read(self, body: dict[str, Any]) -> Body:
        """The request. Raises InvalidRequest that names the field at fault, as the route would answer."""
        for name in self.refused:
            if body.get(name):
                raise InvalidRequest(
                    f"`{name}`: the rows of a batch are answered whole and in the background; leave it out",
                    param=name,
                )
        try:
            return self.request.model_validate(body)
        except ValidationError as error:
            raise invalid_fields(error) from error


def _chat(body: ChatRequest, result: Any, row_id: str, at: float) -> BaseModel:
    return chat_completion(body, result, id=f"chatcmpl-{row_id}", created=at)


def _completion(body: CompletionRequest, result: Any, row_id: str, at: float) -> BaseModel:
    return text_completion(body, result, id=f"cmpl-{row_id}", created=at)


def _embeddings(body: EmbeddingsRequest, result: Any, _row_id: str, _at: float) -> BaseModel:
    return embeddings_answer(body, result)


def _response(body: ResponseRequest, result: Any, row_id: str, at: float) -> BaseModel:
    # It stands in the output file alone: nobody could retrieve it, or go on from it.
    unstored = body.model_copy(update={"store": False})
    return response_answer(unstored, result, id=f"resp_{row_id}", created=at, ended=at)


ENDPOINTS: dict[BatchEndpoint, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatRequest, lambda body: body.spec(), _chat, "messages"),
    "/v1/completions": Endpoint(CompletionRequest, lambda body: body.spec(), _completion, "prompt"),
    "/v1/embeddings": Endpoint(EmbeddingsRequest, lambda body: body.spec(), _embeddings, "input"),
    "/v1/responses": Endpoint(
        ResponseRequest, lambda body: body.spec(), _response, "input", FIELD_NAMES, refused=("stream", "background")
    ),
}
