"""`POST /v1/completions`: a text-generation job on plain prompts, waited for or streamed."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import ApiDep, SubmitterDep
from api.routes.openai.completion_answer import Completion, completion_id, text_completion
from api.routes.openai.completion_request import CompletionRequest
from api.routes.openai.completion_stream import CompletionStream
from api.routes.openai.field_names import openai_names
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.opened_stream import opened_stream
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.waiting import Waiting, while_connected

router = APIRouter(tags=["openai"])


@router.post("/completions", response_model=Completion)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> Completion | Response:
    """Go on with a text, or with several; with `stream: true` as server-sent events that end in `data: [DONE]`.

    The model reads the prompt as it stands, without a chat template. All prompts of a request are one job, named in
    the `x-tandem-job` header. A client that leaves cancels it, unless it sent an `Idempotency-Key` to come back with.
    """
    with openai_names("prompt"):
        submitted = await run_in_threadpool(submitter.submit, scheduling.on(body.spec()))
        waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
        if body.stream:
            stream = CompletionStream(body, submitted.job)
            return await opened_stream(stream.sent, request, waiting, submitted.job)
        response.headers[JOB_HEADER] = submitted.job.id
        async with waiting.cancelled_if_abandoned():
            job = await while_connected(request, waiting.end())
    return text_completion(body, job.result, id=completion_id(job.id), created=job.created_at)
