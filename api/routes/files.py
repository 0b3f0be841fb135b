"""Uploaded files, in OpenAI's shape."""

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, field_validator

from api.auth import Owner
from api.dependencies import ApiDep, IdempotencyKey, ServicesDep
from api.views import Deleted, FileView, Page
from tandem.artifacts import CHUNK_BYTES
from tandem.errors import UnknownArtifact, UnknownFile
from tandem.files import UploadKey
from tandem.specs.media import Purpose

MAX_PAGE = 10_000
"""Files in one page (OpenAI's limit)."""
UNNAMED = "upload"

router = APIRouter(prefix="/files", tags=["files"])


class FileUpload(BaseModel):
    """The parts of the form; one that is not known is refused by name."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    purpose: Purpose

    @field_validator("file", mode="before")
    @classmethod
    def _is_a_file(cls, part: object) -> object:
        if isinstance(part, str):
            raise ValueError("must be a file: a part of the form that has a file name")
        return part


@router.post("")
def upload_file(
    form: Annotated[FileUpload, Form(media_type="multipart/form-data")],
    api: ApiDep,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> FileView:
    """Upload a data set (`fine-tune`) or a batch (`batch`), as JSON lines.

    Its rows are checked when a job names it, line by line and before the job is accepted. The same upload (content,
    name and purpose) with the same `Idempotency-Key` is the same file; another one with that key is a 409.
    """
    # A queue server that is away is told before the disk has taken the whole upload.
    api.services.jobs.ping()
    stored = api.services.files.create(
        _chunks(form.file),
        filename=form.file.filename or UNNAMED,
        purpose=form.purpose,
        owner=owner,
        limit=api.settings.file_bytes,
        key=None if idempotency_key is None else UploadKey(idempotency_key, api.settings.idempotency_seconds),
    )
    return FileView.of(stored)


@router.get("")
def list_files(
    services: ServicesDep,
    purpose: Purpose | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(description="The `last_id` of the page before")] = None,
) -> Page[FileView]:
    """Files by their time of upload, newest first by default."""
    files = services.files.list(purpose=purpose)
    if order == "asc":
        files.reverse()
    if after is not None:
        places = {file.id: place for place, file in enumerate(files)}
        if after not in places:
            raise UnknownFile(f"`after` names the file {after!r}, which is not in this list", param="after")
        files = files[places[after] + 1 :]
    return Page.of([FileView.of(file) for file in files[:limit]], [file.id for file in files], limit=limit)


@router.get("/{file_id}")
def get_file(file_id: str, services: ServicesDep) -> FileView:
    """What is known of a file."""
    return FileView.of(services.files.get(file_id))


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes"}},
)
def get_content(file_id: str, services: ServicesDep) -> StreamingResponse:
    """The file as it was uploaded."""
    file = services.files.get(file_id)
    if not services.artifacts.exists(file.digest):
        raise UnknownArtifact(f"the content of file {file_id} is gone from the artifact store; upload it again")
    return StreamingResponse(
        services.files.content(file),
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "Content-Length": str(file.bytes),
        },
    )


@router.delete("/{file_id}")
def delete_file(file_id: str, services: ServicesDep) -> Deleted:
    """Delete a file. Adapters that were trained on it stay."""
    services.files.delete(file_id)
    return Deleted(id=file_id, object="file")


def _chunks(file: UploadFile) -> Iterator[bytes]:
    """The upload, which waits on the disk if it is large."""
    while chunk := file.file.read(CHUNK_BYTES):
        yield chunk
