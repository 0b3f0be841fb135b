"""Dead letters: jobs that failed for a passing reason until their tries were used up."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.auth import Reach
from api.dependencies import ServicesDep
from api.views import JobView, Page

MAX_PAGE = 100
"""Dead letters in one page: each record is read whole."""

router = APIRouter(prefix="/dead-letters", tags=["operations"])


@router.get("")
def list_dead_letters(
    services: ServicesDep,
    reach: Reach,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[
        str | None, Query(description="The `last_id` of the page before; it must still be a dead letter")
    ] = None,
) -> Page[JobView]:
    """Failed jobs that nobody has requeued yet, the latest death first; each `failure` says what it died of.

    A job becomes a dead letter when trying it again could help, and its `retry.max_retries` are used up; or when
    workers died while they ran it. `POST /v1/jobs/{id}/requeue` does its work anew. They are kept for 30 days
    (TANDEM_DEAD_LETTER_SECONDS), longer than other ended jobs.
    """
    jobs = services.jobs.dead_letters(owner=reach, after=after, limit=limit + 1)
    return Page.of([JobView.of(job) for job in jobs], [job.id for job in jobs], limit=limit)
