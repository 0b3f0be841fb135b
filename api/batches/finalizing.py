"""The last stage of a batch: the answers of all shards become an output file and an error file, in input order.

Nothing is whole in memory: the input is read once more, and each row meets its answer on the way.
"""

import heapq
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import IO, Any

from pydantic import BaseModel

from api.batches.endpoints import ENDPOINTS
from api.batches.request_lines import RequestLine, read_requests
from api.errors import error_body, error_of
from api.routes.openai.field_names import renamed
from tandem.artifacts import CHUNK_BYTES
from tandem.batch import Batch, BatchUsage, Shard
from tandem.errors import InvalidRequest
from tandem.files import UploadKey
from tandem.job import Failure
from tandem.services import Services
from tandem.shard_rows import RowAnswer, merged, read_part, read_shard

SPOOL_BYTES = 8 * 2**20
"""A file up to this size waits in memory, a larger one on the disk."""
OUTPUT_BYTES = 2**40
"""A bound on an output file that no batch meets: 50,000 rows of 20 MB."""
KEY_SECONDS = 86_400.0
"""How long a clerk that takes over finds the files that its predecessor has made."""
EXPIRED = Failure(
    type="BatchExpired",
    code="batch_expired",
    message="This request could not be executed before the completion window expired.",
)
CANCELLED = Failure(
    type="BatchCancelled", code="batch_cancelled", message="This request was not executed: the batch was cancelled."
)
NOT_RUN = frozenset({EXPIRED.code, CANCELLED.code})
"""Rows with these failures have no response: nobody has tried to answer them."""


class _Response(BaseModel):
    status_code: int
    request_id: str
    body: Any


class _RowError(BaseModel):
    code: str
    message: str


class _OutputLine(BaseModel):
    """OpenAI's form of a line of both files."""

    id: str
    custom_id: str
    response: _Response | None
    error: _RowError | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the batch's record says in the end."""

    completed: int
    failed: int
    usage: BatchUsage
    output_file_id: str | None
    error_file_id: str | None


class Finalizing:
    def __init__(self, services: Services, batch: Batch, shards: Sequence[Shard], keep: Callable[[], None]) -> None:
        """`keep` is called between rows; what it raises ends the work."""
        self._services = services
        self._artifacts = services.artifacts
        self._batch = batch
        self._shards = shards
        self._keep = keep
        self._endpoint = ENDPOINTS[batch.endpoint]
        self._usage = BatchUsage()

    def run(self) -> Outcome:
        """Raises UnknownArtifact if content is gone, and what the stores and `keep` raise."""
        completed = failed = 0
        with (
            tempfile.SpooledTemporaryFile(SPOOL_BYTES) as outputs,
            tempfile.SpooledTemporaryFile(SPOOL_BYTES) as errors,
        ):
            for request, answer in self._answered():
                self._keep()
                body = self._body(request, answer)
                if isinstance(body, Failure):
                    failed += 1
                    errors.write(self._failure(request, body))
                else:
                    completed += 1
                    self._count_tokens(answer.result)
                    outputs.write(self._line(request, self._response(request, 200, body)))
            return Outcome(
                completed=completed,
                failed=failed,
                usage=self._usage,
                output_file_id=self._store(outputs, "output") if completed else None,
                error_file_id=self._store(errors, "error") if failed else None,
            )

    def _answered(self) -> Iterator[tuple[RequestLine, RowAnswer]]:
        """Each row with its answer, in input order."""
        answers = iter(self._answers())
        for request in read_requests(self._artifacts.chunks(self._batch.input_digest), self._batch.endpoint):
            assert isinstance(request, RequestLine), "a file with faults is never run"
            answer = next(answers)
            assert answer.row == request.row, "every row has one answer"
            yield request, answer

    def _answers(self) -> Iterable[RowAnswer]:
        """The answers of all rows. Shards of one model are in order, so that one of each model is open at a time."""
        lanes: defaultdict[tuple[str, str], list[Shard]] = defaultdict(list)
        for shard in self._shards:
            lanes[shard.task, shard.model].append(shard)
        refused = (read_part(self._artifacts.chunks(digest)) for digest in self._batch.rejected)
        streams = [chain.from_iterable(refused)]
        streams += [chain.from_iterable(map(self._answers_of, shards)) for shards in lanes.values()]
        return heapq.merge(*streams, key=attrgetter("row"))

    def _answers_of(self, shard: Shard) -> Iterator[RowAnswer]:
        """One for every row of a shard; those that were not answered say why."""
        given = merged(self._artifacts, () if shard.end is None else shard.end.parts)
        if shard.end is not None and shard.end.outcome == "succeeded":
            yield from given
            return
        why = self._why_unanswered(shard)
        upcoming = next(given, None)
        for row in read_shard(self._artifacts.chunks(shard.rows)):
            if upcoming is not None and upcoming.row == row.row:
                yield upcoming
                upcoming = next(given, None)
            else:
                yield RowAnswer(row.row, self._batch.expires_at, failure=why)

    def _why_unanswered(self, shard: Shard) -> Failure:
        if shard.end is not None and shard.end.failure is not None:
            return shard.end.failure
        was_cancelled = self._batch.status == "cancelling" or (shard.end and shard.end.outcome == "cancelled")
        return CANCELLED if was_cancelled else EXPIRED

    def _body(self, request: RequestLine, answer: RowAnswer) -> BaseModel | Failure:
        """What the row is answered with, or why it has failed."""
        if answer.failure is not None:
            return answer.failure
        try:
            body = self._endpoint.read(request.body)
            return self._endpoint.answer(body, answer.result, self._row_id(request), answer.at)
        except InvalidRequest as error:
            return Failure.of(error)

    def _count_tokens(self, result: dict[str, Any]) -> None:
        self._usage = BatchUsage(
            input_tokens=self._usage.input_tokens + result.get("prompt_tokens", 0),
            cached_tokens=self._usage.cached_tokens + result.get("cached_tokens", 0),
            output_tokens=self._usage.output_tokens + result.get("completion_tokens", 0),
        )

    def _failure(self, request: RequestLine, failure: Failure) -> bytes:
        if failure.code in NOT_RUN:
            return self._line(request, None, _RowError(code=failure.code, message=failure.message))
        error = renamed(error_of(failure), self._endpoint.inputs, self._endpoint.names)
        return self._line(request, self._response(request, error.status, error_body(error)))

    def _response(self, request: RequestLine, status: int, body: BaseModel) -> _Response:
        return _Response(status_code=status, request_id=f"req_{self._row_id(request)}", body=body)

    def _line(self, request: RequestLine, response: _Response | None, error: _RowError | None = None) -> bytes:
        line = _OutputLine(
            id=f"batch_req_{self._row_id(request)}", custom_id=request.custom_id, response=response, error=error
        )
        return line.model_dump_json().encode() + b"\n"

    def _row_id(self, request: RequestLine) -> str:
        return f"{self._batch.id.removeprefix('batch_')}{request.row:06d}"

    def _store(self, content: IO[bytes], kind: str) -> str:
        content.seek(0)
        file = self._services.files.create(
            iter(lambda: content.read(CHUNK_BYTES), b""),
            filename=f"{self._batch.id}_{kind}.jsonl",
            purpose="batch_output",
            owner=self._batch.owner,
            limit=OUTPUT_BYTES,
            key=UploadKey(f"{self._batch.id}/{kind}", KEY_SECONDS),
            expires_after=self._batch.output_seconds,
        )
        return file.id
