"""Uploads: a file larger than one request may be, sent in parts. In OpenAI's shape."""

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.auth import Owner, Reach
from api.dependencies import ApiDep, ServicesDep
from api.routes.files import chunks_of
from api.views import FileView
from tandem.errors import InvalidRequest
from tandem.specs import Spec
from tandem.specs.expiry import ExpiresAfter
from tandem.specs.media import Purpose
from tandem.uploads import MAX_PARTS, Status, StoredPart, StoredUpload

MAX_NAME_CHARACTERS = 1024
"""Of a file's name and of its MIME type: far above any real one."""

router = APIRouter(prefix="/uploads", tags=["uploads"])

UPLOAD = "upload_0123456789abcdef01234567"
PART = "part_0123456789abcdef01234567"


class UploadRequest(Spec):
    """What is to come."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"bytes": 2_147_483_648, "filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
            ]
        }
    )

    bytes: int = Field(ge=1)
    """Of the whole file; at most TANDEM_UPLOAD_BYTES, 8 GB by default."""
    filename: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)
    mime_type: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)
    """Taken since OpenAI's clients send it; what a file holds is read from its content."""
    purpose: Purpose
    expires_after: ExpiresAfter | None = None
    """Of the file, from its completion on."""


class UploadCompletion(Spec):
    """How the parts become the file."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"part_ids": [PART], "md5": "9e107d9d372bb6826bd81d3542a419d6"}]}
    )

    part_ids: tuple[str, ...] = Field(min_length=1, max_length=MAX_PARTS)
    """In the order of the file."""
    md5: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{32}$")
    """Of the whole content, hexadecimal: another content is refused."""


class PartForm(BaseModel):
    """The one part of the form; another one is refused by name."""

    model_config = ConfigDict(extra="forbid")

    data: Annotated[UploadFile, File()]

    @field_validator("data", mode="before")
    @classmethod
    def _is_a_file(cls, part: object) -> object:
        if isinstance(part, str):
            raise ValueError("must be a file: a part of the form that has a file name")
        return part


class UploadView(BaseModel):
    """An upload. Times are seconds since the epoch."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Status
    file: FileView | None

    @classmethod
    def of(cls, upload: StoredUpload) -> Self:
        shown: dict[str, Any] = {
            name: getattr(upload, name) for name in cls.model_fields if name not in {"object", "file"}
        }
        return cls(**shown, file=None if upload.file is None else FileView.of(upload.file))


class PartView(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: StoredPart) -> Self:
        return cls(id=part.id, created_at=part.created_at, upload_id=part.upload_id)


@router.post("")
def create_upload(request: UploadRequest, api: ApiDep, owner: Owner) -> UploadView:
    """Begin an upload. It takes parts for an hour; then it expires.

    `client.uploads.upload_file_chunked` of OpenAI's client does all three steps.
    """
    limit = api.settings.upload_bytes
    if request.bytes > limit:
        raise InvalidRequest(f"`bytes` is {request.bytes}, and the limit is {limit}; split the file", param="bytes")
    upload = api.services.uploads.create(
        filename=request.filename,
        purpose=request.purpose,
        size=request.bytes,
        owner=owner,
        file_expires_after=None if request.expires_after is None else request.expires_after.seconds,
    )
    return UploadView.of(upload)


@router.post("/{upload_id}/parts")
def add_part(
    upload_id: str, form: Annotated[PartForm, Form(media_type="multipart/form-data")], api: ApiDep, reach: Reach
) -> PartView:
    """Send a part of the file, of at most 64 MB (TANDEM_PART_BYTES). Parts may be sent in any order, and beside each
    other.
    """
    limit = api.settings.part_bytes
    return PartView.of(api.services.uploads.add_part(upload_id, chunks_of(form.data), limit=limit, owner=reach))


@router.post("/{upload_id}/complete")
def complete_upload(upload_id: str, completion: UploadCompletion, services: ServicesDep, reach: Reach) -> UploadView:
    """Make a file of the parts. Their bytes together must be as many as were announced.

    Sent again, after an answer that was lost, it names the file of the first time.
    """
    upload = services.uploads.complete(upload_id, completion.part_ids, md5=completion.md5, owner=reach)
    return UploadView.of(upload)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, services: ServicesDep, reach: Reach) -> UploadView:
    """End an upload without a file."""
    return UploadView.of(services.uploads.cancel(upload_id, owner=reach))
