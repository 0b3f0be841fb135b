"""Adapters: what there is, where it came from, and its files; and a way in for those trained elsewhere."""

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from api.auth import Owner
from api.dependencies import ApiDep, ServicesDep
from api.views import AdapterView, Deleted, Page
from tandem.adapter_aliases import withdraw
from tandem.adapter_import import AdapterUpload, import_adapter
from tandem.errors import UnknownArtifact

router = APIRouter(prefix="/adapters", tags=["adapters"])


@router.get("")
def list_adapters(services: ServicesDep) -> Page[AdapterView]:
    """Every adapter, newest first."""
    manifests = services.adapters.list()
    return Page.of([AdapterView.of(one) for one in manifests], [one.id for one in manifests])


@router.post("", status_code=201)
def add_adapter(upload: AdapterUpload, api: ApiDep, owner: Owner) -> AdapterView:
    """Serve an adapter that was trained elsewhere: a PEFT folder, uploaded as a zip file.

    It is checked first: the archive, the configs, the weights' names and shapes, and whether they fit the base. The
    same content under the same base and suffix is the same adapter, however often it is sent.
    """
    return AdapterView.of(import_adapter(api.services, upload, owner=owner, limit=api.settings.file_bytes))


# Ids hold colons, and slashes where the base is a hub id. A path takes all it can: the longer route comes first.
@router.get(
    "/{adapter:path}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "The PEFT folder"}},
)
def download_adapter(adapter: str, services: ServicesDep) -> StreamingResponse:
    """The PEFT folder as a zip file: unpacked, `PeftModel.from_pretrained` loads it."""
    manifest = services.adapters.get(adapter)
    for name, digest in manifest.files.items():
        if not services.artifacts.exists(digest):
            raise UnknownArtifact(f"{name} of adapter {adapter} is gone from the artifact store")
    file_name = manifest.id.replace(":", "_").replace("/", "_")
    return StreamingResponse(
        services.adapters.archive(manifest),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{file_name}.zip"'},
    )


@router.get("/{adapter:path}")
def get_adapter(adapter: str, services: ServicesDep) -> AdapterView:
    """One adapter's manifest."""
    return AdapterView.of(services.adapters.get(adapter))


@router.delete("/{adapter:path}")
def delete_adapter(adapter: str, services: ServicesDep) -> Deleted:
    """Withdraw an adapter and the names that were given to it: no new job may name it. Jobs that run with it end as
    they would have.
    """
    withdraw(services.adapters, services.aliases, adapter)
    return Deleted(id=adapter, object="adapter")
