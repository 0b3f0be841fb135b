"""The first stage of a batch: every line is checked before any runs, and the rows are cut into shards."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from api.batches.endpoints import ENDPOINTS, Endpoint
from api.batches.request_lines import RequestLine, read_requests
from api.batches.shard_cutter import ShardCutter
from api.routes.openai.field_names import openai_names
from tandem.batch import Batch, BatchError, Shard
from tandem.errors import QueueUnavailable, TandemError
from tandem.job import Failure
from tandem.services import Services
from tandem.shard_rows import RowAnswer, ShardRow
from tandem.submission import stored_spec

log = logging.getLogger(__name__)

MAX_ERRORS = 1000
"""Faults that a batch's record names (about 200 KB); the error file has all rows that were refused."""


@dataclass(slots=True)
class Validated:
    """What the lines of a file came to."""

    total: int = 0
    """Rows, refused ones included."""
    refused: int = 0
    """Rows whose body cannot be run: each ends in the error file, and the others go on."""
    model: str | None = None
    """Of the first row that can be run, as written there."""
    faults: list[BatchError] = field(default_factory=list)
    """Of the file itself: one is enough, and nothing runs."""
    errors: list[BatchError] = field(default_factory=list)
    """Of refused rows."""
    shards: list[Shard] = field(default_factory=list)
    rejected: tuple[str, ...] = ()
    """Parts (digests) with the refused rows."""


class Validation:
    def __init__(self, services: Services, batch: Batch, keep: Callable[[], None]) -> None:
        """`keep` is called between lines; what it raises ends the validation."""
        self._services = services
        self._batch = batch
        self._keep = keep
        self._endpoint: Endpoint = ENDPOINTS[batch.endpoint]
        self._cutter = ShardCutter(services.artifacts)
        self._found = Validated()

    def run(self) -> Validated:
        """Reads the file once, streamed. Raises UnknownArtifact if it is gone, and what stores and `keep` raise."""
        found, at = self._found, self._services.batches.now()
        for request in read_requests(self._services.artifacts.chunks(self._batch.input_digest), self._batch.endpoint):
            self._keep()
            if isinstance(request, BatchError):
                _note(found.faults, request)
                continue
            found.total += 1
            if found.faults:
                continue  # nothing will run: only the structure of what follows is of interest
            try:
                self._take(request)
            except QueueUnavailable:
                raise
            except TandemError as error:
                self._refuse(request, error, at)
        found.shards, found.rejected = self._cutter.finish()
        return found

    def _take(self, request: RequestLine) -> None:
        """A row that can be run goes into a shard. Raises what is wrong with it."""
        with openai_names(self._endpoint.inputs, self._endpoint.names):
            asked = self._endpoint.spec(self._endpoint.read(request.body))
            owner, reach = self._batch.owner, None if self._batch.operator else self._batch.owner
            spec, model = self._services.submission.resolve(asked, owner=owner, reach=reach)
        self._cutter.add(ShardRow(request.row, stored_spec(spec)), spec.task, model)
        self._found.model = self._found.model or str(request.body.get("model", model))

    def _refuse(self, request: RequestLine, error: TandemError, at: float) -> None:
        self._found.refused += 1
        self._cutter.reject(RowAnswer(request.row, at, failure=Failure.of(error)))
        param = f"body.{error.param}" if error.param else "body"
        fault = BatchError(code=error.code, message=error.message, line=request.row, param=param)
        _note(self._found.errors, fault)


def _note(errors: list[BatchError], error: BatchError) -> None:
    if len(errors) < MAX_ERRORS:
        errors.append(error)
