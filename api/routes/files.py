"""Uploaded files, in OpenAI's shape."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from starlette.responses import Response

from api.auth import Owner, Reach
from api.byte_ranges import RESPONSES, blob_response
from api.dependencies import ApiDep, IdempotencyKey, ServicesDep
from api.views import Deleted, FileView, Page
from tandem.artifacts import CHUNK_BYTES
from tandem.errors import UnknownArtifact
from tandem.files import UploadKey
from tandem.specs.expiry import ExpiresAfter
from tandem.specs.media import Purpose, StoredPurpose

MAX_PAGE = 10_000
"""Files in one page (OpenAI's limit)."""
UNNAMED = "upload"
EXPIRY = "expires_after"

router = APIRouter(prefix="/files", tags=["files"])


class FileUpload(BaseModel):
    """The parts of the form; one that is not known is refused by name."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    purpose: Purpose
    expires_after: ExpiresAfter | None = None
    """Deletes the file so long after the upload; by default, 30 days after it for `batch`, never for others. As two
    parts, `expires_after[anchor]` and `expires_after[seconds]`, or as JSON."""

    @model_validator(mode="before")
    @classmethod
    def _bracketed_fields(cls, form: Any) -> Any:
        """`expires_after[seconds]=3600`, as OpenAI's clients write a field of a field."""
        if not isinstance(form, dict):
            return form
        brackets = {name: value for name, value in form.items() if name.startswith(f"{EXPIRY}[")}
        if brackets:
            form = {name: value for name, value in form.items() if name not in brackets}
            form[EXPIRY] = {name[len(EXPIRY) + 1 : -1]: value for name, value in brackets.items()}
        return form

    @field_validator("file", mode="before")
    @classmethod
    def _is_a_file(cls, part: object) -> object:
        if isinstance(part, str):
            raise ValueError("must be a file: a part of the form that has a file name")
        return part

    @field_validator(EXPIRY, mode="before")
    @classmethod
    def _from_json(cls, part: object) -> object:
        if isinstance(part, str):
            try:
                return json.loads(part)
            except json.JSONDecodeError as error:
                raise ValueError(f"is neither `{EXPIRY}[seconds]` nor JSON ({error})") from error
        return part


@router.post("")
def upload_file(
    form: Annotated[FileUpload, Form(media_type="multipart/form-data")],
    api: ApiDep,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> FileView:
    """Upload a data set (`fine-tune`) or a batch (`batch`) as JSON lines, an image (`vision`), another input of jobs
    (`user_data`), or a PEFT folder as a zip file (`adapter`). `assistants` and `evals` are only kept.

    Its rows are checked when a job names it, line by line and before the job is accepted. The same upload (content,
    name, purpose and expiry) with the same `Idempotency-Key` is the same file; another one with that key is a 409.
    Files above the limit (512 MB by default) come in parts: `POST /v1/uploads`.
    """
    # A queue server that is away is told before the disk has taken the whole upload.
    api.services.jobs.ping()
    stored = api.services.files.create(
        chunks_of(form.file),
        filename=form.file.filename or UNNAMED,
        purpose=form.purpose,
        owner=owner,
        limit=api.settings.file_bytes,
        key=None if idempotency_key is None else UploadKey(idempotency_key, api.settings.idempotency_seconds),
        expires_after=None if form.expires_after is None else form.expires_after.seconds,
    )
    return FileView.of(stored)


@router.get("")
def list_files(
    services: ServicesDep,
    reach: Reach,
    purpose: StoredPurpose | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(description="The `last_id` of the page before")] = None,
) -> Page[FileView]:
    """Files by their time of upload, newest first by default."""
    files = services.files.list(owner=reach, purpose=purpose, order=order, after=after, limit=limit + 1)
    return Page.of([FileView.of(file) for file in files[:limit]], [file.id for file in files], limit=limit)


@router.get("/{file_id}")
def get_file(file_id: str, services: ServicesDep, reach: Reach) -> FileView:
    """What is known of a file."""
    return FileView.of(services.files.get(file_id, owner=reach))


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=RESPONSES)
def get_content(file_id: str, services: ServicesDep, reach: Reach, request: Request) -> Response:
    """The file as it was uploaded, or the part of it that a `Range` header names. `ETag` is its SHA-256."""
    file = services.files.get(file_id, owner=reach)
    if not services.artifacts.exists(file.digest):
        raise UnknownArtifact(f"the content of file {file_id} is gone from the artifact store; upload it again")
    return blob_response(
        request,
        lambda start, end: services.files.content(file, start=start, end=end),
        size=file.bytes,
        digest=file.digest,
        filename=file.filename,
    )


@router.delete("/{file_id}")
def delete_file(file_id: str, services: ServicesDep, reach: Reach) -> Deleted:
    """Delete a file. Adapters that were trained on it stay."""
    services.files.delete(file_id, owner=reach)
    return Deleted(id=file_id, object="file")


def chunks_of(part: UploadFile) -> Iterator[bytes]:
    """What was uploaded, piece by piece: above 1 MB it waits on the disk."""
    while chunk := part.file.read(CHUNK_BYTES):
        yield chunk
