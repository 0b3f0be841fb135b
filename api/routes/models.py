"""The models that a job may name: the catalogue's bases, adapters by their ids, and names given to adapters."""

from fastapi import APIRouter

from api.auth import Key
from api.dependencies import ServicesDep
from api.views import Deleted, ModelView, Page
from tandem.adapter_aliases import withdraw
from tandem.adapters import is_adapter_id
from tandem.errors import InvalidRequest
from tandem.workers import WorkerRegistry

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(services: ServicesDep, key: Key) -> Page[ModelView]:
    """Bases first, with the workers that have them in memory; then the names you gave to adapters, then your adapters
    by their ids, each newest first. `root` is what a name stands for, `parent` the base of an adapter.
    """
    workers = WorkerRegistry(services.jobs).list()
    models = [ModelView.of_base(entry, services.catalogue, workers) for entry in services.catalogue.entries()]
    models += [ModelView.of_alias(alias, manifest) for alias, manifest in services.aliases.list(owner=key.owner)]
    models += [ModelView.of_adapter(manifest) for manifest in services.adapters.list(owner=key.reach)]
    return Page.of(models, [model.id for model in models])


@router.get("/{model:path}")
def get_model(model: str, services: ServicesDep, key: Key) -> ModelView:
    """One base, adapter or name of an adapter. Ids may hold slashes and colons."""
    if is_adapter_id(model):
        return ModelView.of_adapter(services.adapters.get(model, owner=key.reach, param="model"))
    if model not in services.catalogue and (alias := services.aliases.get(model, owner=key.owner)) is not None:
        return ModelView.of_alias(alias, services.adapters.get(alias.adapter, owner=key.reach, param="model"))
    entry = services.catalogue.get(model)
    return ModelView.of_base(entry, services.catalogue, WorkerRegistry(services.jobs).list())


@router.delete("/{model:path}")
def delete_model(model: str, services: ServicesDep, key: Key) -> Deleted:
    """Delete an adapter, as `DELETE /v1/adapters/{adapter}` does: no new job may name it, and jobs that run with it
    end as they would have. Of a name that was given to an adapter the name alone is deleted. The bases are the
    operator's: a request cannot delete one.
    """
    if is_adapter_id(model):
        withdraw(services.adapters, services.aliases, model, owner=key.reach, param="model")
    elif model in services.catalogue or not services.aliases.remove(model, owner=key.owner):
        services.catalogue.get(model)
        raise InvalidRequest(
            f"`model` {model!r} is a base model of the catalogue (TANDEM_CATALOGUE); only adapters can be deleted",
            param="model",
        )
    return Deleted(id=model, object="model")
