"""`POST /v1/embeddings`: a feature-extraction job, waited for."""

import base64
import struct
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, field_validator
from starlette.concurrency import run_in_threadpool

from api.dependencies import ApiDep, SubmitterDep
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.waiting import Waiting, while_connected
from tandem.specs import FeatureExtractionSpec, Name, Spec, TextInputs

router = APIRouter(tags=["openai"])


class EmbeddingsRequest(Spec):
    """OpenAI's embedding request. What is not here is refused by name."""

    model: Annotated[Name, Field(examples=["all-minilm-l6-v2"])]
    input: Annotated[TextInputs, Field(examples=[["a red apple", "a ripe fruit"]])]
    """One text or many; arrays of tokens are not taken."""
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: each vector as little-endian 32-bit floats, as OpenAI's clients ask for it."""
    user: str | None = None
    """Taken and not used."""

    @field_validator("input", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], int | list):
            raise ValueError("arrays of tokens are not supported, since each model has its own; send the text")
        return value


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


@router.post("/embeddings")
async def create_embeddings(
    body: EmbeddingsRequest,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> Embeddings:
    """One vector for each text, of length 1. The job behind it is named in the `x-tandem-job` header.

    A client that leaves cancels the job, unless it sent an `Idempotency-Key` to come back with.
    """
    spec = FeatureExtractionSpec(task="feature-extraction", model=body.model, inputs=body.input)
    submitted = await run_in_threadpool(submitter.submit, scheduling.on(spec))
    response.headers[JOB_HEADER] = submitted.job.id
    waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
    async with waiting.cancelled_if_abandoned():
        job = await while_connected(request, waiting.end())
    tokens = job.result["prompt_tokens"]
    return Embeddings(
        data=[
            Embedding(index=index, embedding=_encoded(row) if body.encoding_format == "base64" else row)
            for index, row in enumerate(job.result["rows"])
        ],
        model=body.model,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
