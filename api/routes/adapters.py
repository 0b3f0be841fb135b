"""Adapters: what there is, where it came from, and its files; and a way in for those trained elsewhere."""

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from api.auth import FORBIDDEN, OPERATORS_ONLY, Key, Reach
from api.dependencies import ApiDep, ServicesDep
from api.views import AdapterView, Deleted, Page
from tandem.adapter_aliases import withdraw
from tandem.adapter_import import AdapterUpload, import_adapter
from tandem.errors import UnknownArtifact
from tandem.workers import WorkerRegistry

router = APIRouter(prefix="/adapters", tags=["adapters"])


@router.get("")
def list_adapters(services: ServicesDep, reach: Reach) -> Page[AdapterView]:
    """Your adapters, newest first."""
    manifests = services.adapters.list(owner=reach)
    pinned = services.adapters.pinned()
    return Page.of([AdapterView.of(one, pinned) for one in manifests], [one.id for one in manifests])


@router.post("", status_code=201)
def add_adapter(upload: AdapterUpload, api: ApiDep, key: Key) -> AdapterView:
    """Serve an adapter that was trained elsewhere: a PEFT folder, uploaded as a zip file.

    It is checked first: the archive, the configs, the weights' names and shapes, and whether they fit the base. The
    same content under the same base and suffix is the same adapter, however often it is sent.
    """
    limit = api.settings.file_bytes
    manifest = import_adapter(api.services, upload, owner=key.owner, reach=key.reach, limit=limit)
    return AdapterView.of(manifest, api.services.adapters.pinned())


# Ids hold colons, and slashes where the base is a hub id. A path takes all it can: the longer route comes first.
@router.get(
    "/{adapter:path}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "The PEFT folder"}},
)
def download_adapter(adapter: str, services: ServicesDep, reach: Reach) -> StreamingResponse:
    """The PEFT folder as a zip file: unpacked, `PeftModel.from_pretrained` loads it."""
    manifest = services.adapters.get(adapter, owner=reach)
    for name, digest in manifest.files.items():
        if not services.artifacts.exists(digest):
            raise UnknownArtifact(f"{name} of adapter {adapter} is gone from the artifact store")
    file_name = manifest.id.replace(":", "_").replace("/", "_")
    return StreamingResponse(
        services.adapters.archive(manifest),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{file_name}.zip"'},
    )


@router.post("/{adapter:path}/pin", dependencies=[OPERATORS_ONLY], responses=FORBIDDEN)
def pin_adapter(adapter: str, services: ServicesDep) -> AdapterView:
    """Let it keep its slot on every worker, from its first use there on, however many others are used. One slot of
    each worker is left to all others: a pin beyond that is refused.
    """
    manifest = services.adapters.get(adapter)
    slots = [worker.adapter_slots for worker in WorkerRegistry(services.jobs).list() if worker.adapter_slots]
    services.adapters.pin(manifest, slots=min(slots, default=None))
    return AdapterView.of(manifest, {manifest.id})


@router.post("/{adapter:path}/unpin", dependencies=[OPERATORS_ONLY], responses=FORBIDDEN)
def unpin_adapter(adapter: str, services: ServicesDep) -> AdapterView:
    """Let it leave its slot as others do, when it is the one that was not used for longest."""
    manifest = services.adapters.get(adapter)
    services.adapters.unpin(manifest.id)
    return AdapterView.of(manifest)


@router.get("/{adapter:path}")
def get_adapter(adapter: str, services: ServicesDep, reach: Reach) -> AdapterView:
    """One adapter's manifest."""
    return AdapterView.of(services.adapters.get(adapter, owner=reach), services.adapters.pinned())


@router.delete("/{adapter:path}")
def delete_adapter(adapter: str, services: ServicesDep, reach: Reach) -> Deleted:
    """Withdraw an adapter and the names that were given to it: no new job may name it. Jobs that run with it end as
    they would have.
    """
    withdraw(services.adapters, services.aliases, adapter, owner=reach)
    return Deleted(id=adapter, object="adapter")
