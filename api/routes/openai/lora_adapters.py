"""Adapters under names of the client's, by the routes of vLLM's server."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import ConfigDict, Field

from api.auth import Key, Owner
from api.dependencies import ApiDep, ServicesDep
from tandem.adapter_import import AdapterUpload, import_adapter
from tandem.adapters import AdapterManifest, is_adapter_id
from tandem.api_keys import ApiKey
from tandem.errors import InvalidRequest, TandemError, UnknownAdapter
from tandem.specs import Name, Spec, Task
from tandem.specs.base import MAX_URL_CHARACTERS
from tandem.specs.media import FILE

BASE_TASK: Task = "text-generation"
"""vLLM serves one base, which the request does not name: here it is the catalogue's default for this task."""

router = APIRouter(tags=["adapters"])


class LoadRequest(Spec):
    """Which adapter, and what it is to be called."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"lora_name": "support", "lora_path": "ft:smollm2-135m-instruct:default:support:0123abcd"}]
        }
    )

    lora_name: Name
    """What jobs are to name as their model."""
    lora_path: str = Field(min_length=1, max_length=MAX_URL_CHARACTERS)
    """An adapter's id (`ft:…`), or `file-…` of an uploaded PEFT folder. No path: the server's disk is not read."""
    base_model_name: Name | None = None
    """Of an uploaded folder: the catalogue name of the model that it was trained on. By default the one that writes
    text for those who name no model."""
    load_inplace: bool = False
    """Whether a name that is taken is to stand for this adapter from now on."""


class UnloadRequest(Spec):
    """Which name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"lora_name": "support"}]})

    lora_name: Name
    lora_int_id: int | None = None
    """Of vLLM's shape; a name needs none here."""


SUCCESS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/plain": {"example": "Success: LoRA adapter 'support' added successfully."}},
        "description": "Done, in vLLM's words",
    }
}


@router.post("/load_lora_adapter", response_class=PlainTextResponse, responses=SUCCESS)
def load_lora_adapter(request: LoadRequest, api: ApiDep, key: Key) -> str:
    """Give an adapter a name of yours. From then on every route takes it as a model from you.

    The adapter is one that is here, by its id, or a PEFT folder that was uploaded as a zip file with the purpose
    `adapter`, which is checked and published first. Its weights are loaded by the first request that needs them.
    """
    manifest = _adapter(request, api, key)
    api.services.aliases.add(request.lora_name, manifest, owner=key.owner, replace=request.load_inplace)
    return f"Success: LoRA adapter '{request.lora_name}' added successfully."


@router.post("/unload_lora_adapter", response_class=PlainTextResponse, responses=SUCCESS)
def unload_lora_adapter(request: UnloadRequest, services: ServicesDep, owner: Owner) -> str:
    """Take a name back that was given by `load_lora_adapter`. The adapter stays, under its id."""
    if not services.aliases.remove(request.lora_name, owner=owner):
        raise UnknownAdapter(f"The lora adapter '{request.lora_name}' cannot be found.", param="lora_name")
    return f"Success: LoRA adapter '{request.lora_name}' removed successfully."


def _adapter(request: LoadRequest, api: ApiDep, key: ApiKey) -> AdapterManifest:
    """Raises what import_adapter raises, UnknownAdapter, and InvalidRequest for what is neither id nor file."""
    services = api.services
    if is_adapter_id(request.lora_path):
        return services.adapters.get(request.lora_path, owner=key.reach, param="lora_path")
    if FILE.fullmatch(request.lora_path):
        base = request.base_model_name or services.catalogue.default(BASE_TASK).name
        upload = AdapterUpload(file=request.lora_path, base=base)
        try:
            limit = api.settings.file_bytes
            return import_adapter(services, upload, owner=key.owner, reach=key.reach, limit=limit)
        except TandemError as error:
            raise _in_vllms_fields(error) from error
    raise InvalidRequest(
        f"`lora_path` {request.lora_path!r} is neither an adapter's id (`ft:…`) nor an uploaded file (`file-…`): "
        "paths of the server's disk are not read. Upload the PEFT folder as a zip file with the purpose 'adapter' "
        "and give the file's id",
        param="lora_path",
    )


FIELDS = {"file": "lora_path", "base": "base_model_name", "model": "base_model_name"}
"""What the import of an adapter calls its fields, and what they are called here."""


def _in_vllms_fields(error: TandemError) -> TandemError:
    """The same error, with the names of the fields that the client has sent."""
    if error.param not in FIELDS:
        return error
    param = FIELDS[error.param]
    return type(error)(error.message.replace(f"`{error.param}`", f"`{param}`"), param=param)
