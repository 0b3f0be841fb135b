"""`POST /v1/embeddings`: a feature-extraction job, waited for."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import ApiDep, SubmitterDep
from api.routes.openai.embeddings_answer import Embeddings, EmbeddingsRequest, embeddings_answer
from api.routes.openai.field_names import openai_names
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.waiting import Waiting, while_connected

router = APIRouter(tags=["openai"])


@router.post("/embeddings")
async def create_embeddings(
    body: EmbeddingsRequest,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> Embeddings:
    """One vector for each text, of length 1. The job behind it is named in the `x-tandem-job` header.

    A client that leaves cancels the job, unless it sent an `Idempotency-Key` to come back with.
    """
    with openai_names("input"):
        submitted = await run_in_threadpool(submitter.submit, scheduling.on(body.spec()))
        response.headers[JOB_HEADER] = submitted.job.id
        waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
        async with waiting.cancelled_if_abandoned():
            job = await while_connected(request, waiting.end())
    return embeddings_answer(body, job.result)
