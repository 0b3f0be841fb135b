"""The models that a job may name: the catalogue's bases, and adapters by their ids."""

from fastapi import APIRouter

from api.dependencies import ServicesDep
from api.views import ModelView, Page
from tandem.adapters import is_adapter_id
from tandem.workers import WorkerRegistry

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(services: ServicesDep) -> Page[ModelView]:
    """Bases first, then adapters, newest first; with the workers that have them in memory."""
    workers = WorkerRegistry(services.jobs).list()
    models = [ModelView.of_base(entry, services.catalogue, workers) for entry in services.catalogue.entries()]
    models += [ModelView.of_adapter(manifest) for manifest in services.adapters.list()]
    return Page.of(models, [model.id for model in models])


@router.get("/{model:path}")
def get_model(model: str, services: ServicesDep) -> ModelView:
    """One base or adapter."""
    if is_adapter_id(model):
        return ModelView.of_adapter(services.adapters.get(model, param="model"))
    entry = services.catalogue.get(model)
    return ModelView.of_base(entry, services.catalogue, WorkerRegistry(services.jobs).list())
