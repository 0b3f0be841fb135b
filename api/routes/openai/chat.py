"""`POST /v1/chat/completions`: a text-generation job, waited for or streamed."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import ApiDep, SubmitterDep
from api.routes.openai.chat_answer import ChatCompletion, chat_completion, completion_id
from api.routes.openai.chat_request import ChatRequest
from api.routes.openai.chat_stream import ChatStream
from api.routes.openai.field_names import openai_names
from api.routes.openai.job_header import JOB_HEADER
from api.routes.openai.opened_stream import opened_stream
from api.routes.openai.scheduling_headers import SchedulingHeadersDep
from api.waiting import Waiting, while_connected

router = APIRouter(tags=["openai"])


@router.post("/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    response: Response,
    api: ApiDep,
    submitter: SubmitterDep,
    scheduling: SchedulingHeadersDep,
) -> ChatCompletion | Response:
    """Answer a conversation; with `stream: true` as server-sent events that end in `data: [DONE]`.

    The job behind it is named in the `x-tandem-job` header. A client that leaves cancels the job, unless it sent an
    `Idempotency-Key` to come back with. `temperature` is 1 by default, as OpenAI documents it.

    How urgent it is says `service_tier` (`flex` is low, `priority` is high) or, before that, `x-tandem-priority`.
    """
    with openai_names("messages"):
        submitted = await run_in_threadpool(submitter.submit, scheduling.on(body.spec()))
        waiting = Waiting(api, submitted.job, is_shared=submitter.idempotency_key is not None)
        if body.stream:
            stream = ChatStream(body, submitted.job)
            return await opened_stream(stream.sent, request, waiting, submitted.job)
        response.headers[JOB_HEADER] = submitted.job.id
        async with waiting.cancelled_if_abandoned():
            job = await while_connected(request, waiting.end())
    return chat_completion(body, job.result, id=completion_id(job.id), created=job.created_at)
