"""`/v1/batches`: many requests in one file, answered in the background, in OpenAI's shape."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, Field

from api.auth import Key, Reach
from api.dependencies import ApiDep, IdempotencyKey, ServicesDep
from api.views import Page
from tandem.batch import Batch, BatchStatus
from tandem.errors import InvalidRequest
from tandem.files import StoredFile, UploadKey
from tandem.job_store import Share
from tandem.services import Services
from tandem.specs import Priority, Spec
from tandem.specs.base import MAX_METADATA, FileId
from tandem.specs.batch import MAX_BATCH_BYTES, BatchEndpoint, CompletionWindow
from tandem.specs.expiry import ExpiresAfter

MAX_PAGE = 100
"""Batches in one page (OpenAI's limit)."""

router = APIRouter(prefix="/batches", tags=["openai"])


class BatchRequest(Spec):
    """OpenAI's request for a batch. What is not here is refused by name."""

    input_file_id: Annotated[FileId, Field(examples=["file-0123456789abcdef01234567"])]
    """A file of the purpose `batch`: JSON lines of `{"custom_id", "method": "POST", "url", "body"}`."""
    endpoint: BatchEndpoint
    """The `url` of every line."""
    completion_window: Annotated[CompletionWindow, Field(examples=["24h"])]
    """The batch expires after this time, and keeps what was done: `24h`, or any other number of s, m, h or d."""
    metadata: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=MAX_METADATA),
    ] = None
    output_expires_after: ExpiresAfter | None = None
    """When the output and the error file are deleted; without it they are kept."""


class BatchErrorView(BaseModel):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrorsView(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchErrorView]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchUsageView(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchView(BaseModel):
    """A batch. Times are seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: BatchEndpoint
    model: str | None = Field(description="Of the first row that can be run")
    errors: BatchErrorsView | None = Field(
        description="What is wrong with the file, or with single rows; only the former fails the batch"
    )
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsageView
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> "BatchView":
        usage = batch.usage
        errors = [BatchErrorView(**error.model_dump()) for error in batch.errors]
        return cls(
            **batch.model_dump(
                include={
                    *("id", "endpoint", "model", "input_file_id", "completion_window", "status", "metadata"),
                    *("output_file_id", "error_file_id"),
                }
            ),
            errors=BatchErrorsView(data=errors) if errors else None,
            created_at=int(batch.created_at),
            in_progress_at=_whole(batch.in_progress_at),
            expires_at=int(batch.expires_at),
            finalizing_at=_whole(batch.finalizing_at),
            cancelling_at=_whole(batch.cancelling_at),
            **_end_times(batch),
            request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
            usage=BatchUsageView(
                input_tokens=usage.input_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
                output_tokens=usage.output_tokens,
                total_tokens=usage.input_tokens + usage.output_tokens,
            ),
        )


@router.post("")
def create_batch(
    body: BatchRequest,
    api: ApiDep,
    key: Key,
    idempotency_key: IdempotencyKey = None,
    priority: Annotated[
        Priority | None,
        Header(alias="x-tandem-priority", description="How urgent its rows are; `low` if nothing says otherwise"),
    ] = None,
) -> BatchView:
    """Run every request of an uploaded file. Its lines are all checked before any runs; follow `status`.

    The same request with the same `Idempotency-Key` is the same batch.
    """
    services = api.services
    file = _input_file(services, body.input_file_id, key.reach)
    batch = services.batches.create(
        owner=key.owner,
        share=Share(key.weight, key.max_queued),
        operator=key.operator,
        endpoint=body.endpoint,
        file=file,
        completion_window=body.completion_window,
        priority=priority or "low",
        metadata=body.metadata,
        output_seconds=None if body.output_expires_after is None else body.output_expires_after.seconds,
        key=None if idempotency_key is None else UploadKey(idempotency_key, api.settings.idempotency_seconds),
    )
    return BatchView.of(batch)


@router.get("")
def list_batches(
    services: ServicesDep,
    reach: Reach,
    after: Annotated[str | None, Query(description="The `last_id` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
) -> Page[BatchView]:
    """Your batches, newest first."""
    batches = services.batches.list(reach, after=after, limit=limit + 1)
    return Page.of([BatchView.of(batch) for batch in batches[:limit]], [batch.id for batch in batches], limit=limit)


@router.get("/{batch_id}")
def get_batch(batch_id: str, services: ServicesDep, reach: Reach) -> BatchView:
    """How a batch stands."""
    return BatchView.of(services.batches.get(batch_id, reach))


@router.post("/{batch_id}/cancel")
def cancel_batch(batch_id: str, services: ServicesDep, reach: Reach) -> BatchView:
    """End a batch early. What was answered is kept; it is `cancelling` until that is in its output file."""
    return BatchView.of(services.batches.cancel(batch_id, reach))


def _input_file(services: Services, file_id: str, owner: str | None) -> StoredFile:
    """Raises UnknownFile, InvalidRequest for one that is no batch, UnknownArtifact if its content is gone."""
    file = services.files.get(file_id, owner=owner, param="input_file_id")
    if file.purpose != "batch":
        raise InvalidRequest(
            f"`input_file_id` {file_id} was uploaded for {file.purpose!r}; upload it with purpose 'batch'",
            param="input_file_id",
        )
    if file.bytes > MAX_BATCH_BYTES:
        raise InvalidRequest(
            f"`input_file_id` {file_id} has {file.bytes} bytes, and a batch may have {MAX_BATCH_BYTES}; cut it into "
            "several files",
            param="input_file_id",
        )
    # The batch's record refers to it from now on, and it may be old.
    services.artifacts.refresh(file.digest)
    return file


def _end_times(batch: Batch) -> dict[str, Any]:
    """`completed_at` and the like: the one that the status names has a time."""
    ends: tuple[BatchStatus, ...] = ("completed", "failed", "expired", "cancelled")
    return {f"{end}_at": _whole(batch.ended_at) if batch.status == end else None for end in ends}


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
