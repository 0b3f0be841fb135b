"""`/v1/fine_tuning/jobs`: fine-tuning jobs as OpenAI's clients know them. Their ids are the jobs' own."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.auth import Reach
from api.dependencies import ServicesDep, SubmitterDep
from api.fine_tuning.checkpoint_view import TuningCheckpoint, checkpoints_of
from api.fine_tuning.event_view import TuningEvent, cursor_of, event_view
from api.fine_tuning.request import TuningRequest
from api.fine_tuning.view import FineTuningJob
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.views import Page
from tandem.errors import InvalidRequest, UnknownJob
from tandem.event_log import EventLog
from tandem.job import Job
from tandem.job_store import JobStore
from tandem.services import Services

MAX_PAGE = 100
"""Jobs, events or checkpoints in one page."""
PAGE = 20
CHECKPOINTS_PAGE = 10
"""OpenAI's own default there."""
NO_METADATA = "null"
METADATA_FILTER = re.compile(r"metadata\[(?P<name>.+)\]")

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
After = Annotated[str | None, Query(description="The `last_id` of the page before")]

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])


@router.post("", responses={200: {"description": "The job; also the first one of a repeated `Idempotency-Key`"}})
def create_job(
    body: TuningRequest, submitter: SubmitterDep, scheduling: SchedulingHeadersDep, response: Response
) -> FineTuningJob:
    """Train a model on an uploaded file.

    The files are checked line by line before the job is accepted; 400 names the first faulty lines. What OpenAI's
    body has no room for comes by `extra_body`: `lora`, `method_options`, `task`, `publish_checkpoints`.
    """
    submitted = submitter.submit(scheduling.on(body.spec()))
    if body.integrations and submitted.created:
        EventLog(submitter.api.services.jobs).append(
            submitted.job.id,
            "warning",
            {"message": "`integrations` are not run by this service: follow the events, or read the result files"},
        )
    response.headers["Location"] = f"/v1/fine_tuning/jobs/{submitted.job.id}"
    return FineTuningJob.of(submitted.job)


@router.get("")
def list_jobs(
    request: Request, services: ServicesDep, reach: Reach, limit: Limit = PAGE, after: After = None
) -> Page[FineTuningJob]:
    """Fine-tuning jobs, newest first; `metadata[name]=value` shows those with the label, `metadata=null` those
    without any."""
    wanted = _metadata_filter(request.query_params)
    found = (job for job in _trainings(services.jobs, reach, after) if _matches(job, wanted))
    jobs = list(islice(found, limit + 1))
    return Page.of([FineTuningJob.of(job) for job in jobs], [job.id for job in jobs], limit=limit)


@router.get("/{fine_tuning_job_id}")
def get_job(fine_tuning_job_id: str, services: ServicesDep, reach: Reach) -> FineTuningJob:
    """A job as it stands."""
    return FineTuningJob.of(_training(services, fine_tuning_job_id, reach))


@router.post("/{fine_tuning_job_id}/cancel")
def cancel_job(fine_tuning_job_id: str, services: ServicesDep, reach: Reach) -> FineTuningJob:
    """Cancel a queued job at once, and ask a running one to stop; an ended one stays as it is."""
    return FineTuningJob.of(services.jobs.cancel(_training(services, fine_tuning_job_id, reach).id))


@router.post("/{fine_tuning_job_id}/pause")
def pause_job(fine_tuning_job_id: str, services: ServicesDep, reach: Reach) -> FineTuningJob:
    """Hold a job back until it is resumed. A running one keeps a checkpoint, and shows as `queued` when it has
    stopped: `tandem.paused` says why it waits."""
    return FineTuningJob.of(services.jobs.pause(_training(services, fine_tuning_job_id, reach).id))


@router.post("/{fine_tuning_job_id}/resume")
def resume_job(fine_tuning_job_id: str, services: ServicesDep, reach: Reach) -> FineTuningJob:
    """Let a paused job go on from where it was."""
    return FineTuningJob.of(services.jobs.resume(_training(services, fine_tuning_job_id, reach).id))


@router.get("/{fine_tuning_job_id}/events")
def list_events(
    fine_tuning_job_id: str, services: ServicesDep, reach: Reach, limit: Limit = PAGE, after: After = None
) -> Page[TuningEvent]:
    """A job's events, newest first. `GET /v1/jobs/{id}/events` streams them as they come."""
    job = _training(services, fine_tuning_job_id, reach)
    shown = (event_view(job, event) for event in EventLog(services.jobs).newest_first(job, _place(after)))
    events = list(islice((event for event in shown if event is not None), limit + 1))
    return Page.of(events, [event.id for event in events], limit=limit)


@router.get("/{fine_tuning_job_id}/checkpoints")
def list_checkpoints(
    fine_tuning_job_id: str, services: ServicesDep, reach: Reach, limit: Limit = CHECKPOINTS_PAGE, after: After = None
) -> Page[TuningCheckpoint]:
    """The checkpoints that can be asked like models, the latest first: those of a job with `publish_checkpoints`."""
    job = _training(services, fine_tuning_job_id, reach)
    checkpoints = checkpoints_of(job, services.adapters.list(), EventLog(services.jobs).newest_first(job))
    if after is not None:
        ids = [checkpoint.id for checkpoint in checkpoints]
        if after not in ids:
            raise InvalidRequest(f"`after` names {after!r}, which is no checkpoint of job {job.id}", param="after")
        checkpoints = checkpoints[ids.index(after) + 1 :]
    return Page.of(checkpoints[: limit + 1], [checkpoint.id for checkpoint in checkpoints], limit=limit)


def _training(services: Services, job_id: str, owner: str | None, *, param: str = "fine_tuning_job_id") -> Job:
    """Raises UnknownJob, also for a job of another kind."""
    job = services.jobs.get(job_id, owner=owner)
    if job.kind != "finetune":
        raise UnknownJob(f"job {job_id} is no fine-tuning job, but of the kind {job.kind!r}", param=param)
    return job


def _trainings(jobs: JobStore, owner: str | None, after: str | None) -> Iterator[Job]:
    """Every fine-tuning job that was submitted before the one named, newest first."""
    sequence = None if after is None else jobs.get(after, owner=owner).sequence
    while page := jobs.list(kind="finetune", owner=owner, after=sequence, limit=MAX_PAGE):
        yield from page
        sequence = page[-1].sequence


def _metadata_filter(query: Mapping[str, str]) -> dict[str, str] | None:
    """The labels that are asked for; None for jobs without any. Raises InvalidRequest for what is neither."""
    labels = {named["name"]: value for key, value in query.items() if (named := METADATA_FILTER.fullmatch(key))}
    if "metadata" not in query:
        return labels
    if query["metadata"] != NO_METADATA or labels:
        raise InvalidRequest(
            "`metadata` in the query is either `metadata[name]=value`, or `metadata=null` alone", param="metadata"
        )
    return None


def _matches(job: Job, wanted: dict[str, str] | None) -> bool:
    if wanted is None:
        return not job.metadata
    return wanted.items() <= job.metadata.items()


def _place(after: str | None) -> str | None:
    if after is None:
        return None
    try:
        return cursor_of(after)
    except ValueError:
        raise InvalidRequest(f"`after` names {after!r}, which is no event's id", param="after") from None
