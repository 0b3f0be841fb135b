"""Lanes, and the whole service: how they stand, and holding their jobs back.

A lane holds the jobs of one kind and model. While it is paused, running jobs go on, new ones queue, none is begun.
They concern the jobs of all owners: 403 `forbidden` without an operator's key.
"""

from collections.abc import Iterator

from fastapi import APIRouter

from api.auth import FORBIDDEN, OPERATORS_ONLY
from api.dependencies import ServicesDep
from api.views import LanesView, LaneView, ServiceView
from tandem.catalogue import Catalogue
from tandem.errors import NotFound
from tandem.job_reads import LaneStatus
from tandem.services import Services
from tandem.specs import FineTuneSpec
from tandem.tickets import lane

router = APIRouter(tags=["operations"], dependencies=[OPERATORS_ONLY], responses=FORBIDDEN)


@router.get("/lanes")
def list_lanes(services: ServicesDep) -> LanesView:
    """Every lane by name: how many of its jobs wait for a worker now, and since when it is paused, if it is.

    `paused_since` beside the list is the whole service's own.
    """
    return LanesView(
        data=[LaneView.of(status) for status in _lanes(services).values()],
        paused_since=services.jobs.paused_since(),
    )


# Lanes are named after models, whose hub ids hold slashes.
@router.post("/lanes/{name:path}/pause")
def pause_lane(name: str, services: ServicesDep) -> LaneView:
    """Begin no more jobs of this lane; running ones go on, new ones queue. Paused already: it stays so."""
    _known(services, name)
    services.jobs.pause_lane(name)
    return LaneView.of(_known(services, name))


@router.post("/lanes/{name:path}/resume")
def resume_lane(name: str, services: ServicesDep) -> LaneView:
    """Let the lane's jobs be begun again."""
    _known(services, name)
    services.jobs.resume_lane(name)
    return LaneView.of(_known(services, name))


@router.post("/service/pause")
def pause_service(services: ServicesDep) -> ServiceView:
    """Maintenance: begin no more jobs in any lane; running ones go on, new ones queue."""
    services.jobs.pause_lane()
    return ServiceView(paused_since=services.jobs.paused_since())


@router.post("/service/resume")
def resume_service(services: ServicesDep) -> ServiceView:
    """End the maintenance. Lanes that were paused by themselves stay paused."""
    services.jobs.resume_lane()
    return ServiceView(paused_since=services.jobs.paused_since())


def _known(services: Services, name: str) -> LaneStatus:
    status = _lanes(services).get(name)
    if status is None:
        raise NotFound(f"there is no lane {name!r}; GET /v1/lanes lists them", param="lane")
    return status


def _lanes(services: Services) -> dict[str, LaneStatus]:
    """Every lane by its name: those of the catalogue, and those with jobs of models that were in it before."""
    lanes = {name: LaneStatus(name, ready=0, paused_since=None) for name in _possible(services.catalogue)}
    lanes |= {status.lane: status for status in services.jobs.lanes()}
    return dict(sorted(lanes.items()))


def _possible(catalogue: Catalogue) -> Iterator[str]:
    trained = FineTuneSpec.model_fields["task"].default
    for entry in catalogue.entries():
        yield lane("inference", entry.name)
        yield lane("batch", entry.name)
        if trained in entry.tasks:
            yield lane("finetune", entry.name)
