"""What a stored response's job says of its conversation: what was asked, and what it can be gone on from."""

from pydantic import JsonValue, ValidationError

from api.routes.openai.chat_answer import texts_of
from api.routes.openai.response_answer import output_items
from api.routes.openai.response_items import ItemView, shown_items, views_of
from api.routes.openai.response_request import ResponseRequest
from tandem.errors import InvalidRequest, UnknownResponse
from tandem.job import Job
from tandem.responses import RESPONSE, response_id, response_status
from tandem.specs.response import AskedResponse

Shown = dict[str, JsonValue]
ENDED_WITH_OUTPUT = ("completed", "incomplete")


def request_of(job: Job) -> ResponseRequest:
    """What was asked for. Raises UnknownResponse if it is none of this version's requests."""
    try:
        return ResponseRequest.model_validate(_asked(job).request)
    except ValidationError as error:
        raise UnknownResponse(
            f"the response {response_id(job.id)!r} was made by another version of the service", param="response_id"
        ) from error


def input_items(job: Job) -> list[ItemView]:
    """All that the model was given, except for the instructions. Raises UnknownResponse."""
    hex_id = response_id(job.id).removeprefix(RESPONSE)
    return [*views_of(_asked(job).history), *shown_items(request_of(job).items, hex_id)]


def history_after(job: Job) -> list[Shown]:
    """The conversation with the response itself at its end.

    Raises UnknownResponse, and InvalidRequest for a response that has not ended or has no output.
    """
    status = response_status(job)
    if status not in ENDED_WITH_OUTPUT:
        raise InvalidRequest(
            f"the response {response_id(job.id)!r} is {status}; only a completed one can be continued",
            param="previous_response_id",
        )
    # Log-probabilities are long, and no model reads them.
    said = {**texts_of(job.result)[0], "logprobs": None}
    items: list[ItemView] = [*input_items(job), *output_items(said, response_id(job.id))]
    return [item.model_dump(mode="json") for item in items]


def _asked(job: Job) -> AskedResponse:
    return AskedResponse.model_validate(job.spec["response"])
