"""Images, audio and video in a spec: base64, an uploaded file's id, or the result of another job."""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tandem.specs.base import MAX_INPUTS

ARTIFACT = re.compile(r"artifact-([0-9a-f]{64})")
"""How specs and results name a blob of the artifact store: by the SHA-256 of its content."""
FILE = re.compile(r"file-[0-9a-f]{24}")
DATA_URL = re.compile(r"data:[^,;]{0,128}(?:;[^,;]{0,128})*;base64,")

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "adapter"]
"""What an uploaded file is for, in OpenAI's words: images are `vision`, other inputs of jobs `user_data`. One word is
ours: an `adapter` is a PEFT folder as a zip file. Nothing here reads `assistants` and `evals`: they are only kept."""
StoredPurpose = Literal[Purpose, "batch_output", "fine-tune-results"]
"""The same, and what files are for that the service makes itself."""


class Media(str):
    """One image, sound or video: base64 (a `data:` URL too), `file-…` of an upload, or `artifact-…` of a result.

    URLs are refused: a service that fetches what it is told to can be made to read what only it may see.
    """

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls._checked, core_schema.str_schema(min_length=1))

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema.str_schema(min_length=1))
        schema["description"] = "base64, the id of an uploaded file (`file-…`) or a result's `artifact-…`"
        return schema

    @property
    def artifact(self) -> str | None:
        """The digest of the blob that it names, if it names one."""
        named = ARTIFACT.fullmatch(self)
        return named[1] if named else None

    @property
    def file_id(self) -> str | None:
        return str(self) if FILE.fullmatch(self) else None

    def content(self) -> bytes:
        """The bytes of one given as base64."""
        return base64.b64decode(self[_prefix(self) :], validate=True)

    @classmethod
    def _checked(cls, value: str) -> "Media":
        if ARTIFACT.fullmatch(value) or FILE.fullmatch(value):
            return cls(value)
        if re.match(r"[a-z][a-z0-9+.-]*://", value, re.IGNORECASE):
            raise ValueError("URLs are not fetched: send the content as base64, or upload it and name the file's id")
        try:
            base64.b64decode(value[_prefix(value) :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"is neither base64 ({error}) nor the id of an uploaded file (`file-` and 24 hex digits)"
            ) from error
        return cls(value)


MediaInputs = Media | Annotated[tuple[Media, ...], Field(min_length=1, max_length=MAX_INPUTS)]
"""One image (or video, or sound), or many: the result then has one row an input, in order."""


def _prefix(value: str) -> int:
    """Characters of `data:image/png;base64,` in front of the content."""
    match = DATA_URL.match(value)
    return match.end() if match else 0


def replace_media(value: Any, replace: Callable[[Media, str], Media], param: str) -> Any:
    """`value` (of a spec's field called `param`) with each Media in it replaced; the callable gets its path too."""
    if isinstance(value, Media):
        return replace(value, param)
    if isinstance(value, tuple):
        return tuple(replace_media(item, replace, f"{param}[{place}]") for place, item in enumerate(value))
    if isinstance(value, dict):
        return {name: replace_media(item, replace, f"{param}.{name}") for name, item in value.items()}
    if isinstance(value, BaseModel):
        changes = {
            name: new
            for name, old in value
            if (new := replace_media(old, replace, f"{param}.{name}")) is not old and new != old
        }
        return value.model_copy(update=changes) if changes else value
    return value
