"""The calls on jobs: submit, follow, wait, map, stream, cancel, pause, requeue."""

import io
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, Literal, Unpack

import httpx

from tandem.client.event_stream import follow
from tandem.client.inputs import wire_inputs
from tandem.client.mapping import OnError, each_row, in_order, with_progress
from tandem.client.records import JobHandle
from tandem.client.row_jobs import RowJobs, chunks
from tandem.client.scheduling import SchedulingOptions, scheduling_fields
from tandem.client.token_text import new_text
from tandem.client.transport import Transport, error_of
from tandem.errors import InvalidRequest, TandemError
from tandem.job import JobEvent, JobState

WINDOW = 64
"""Jobs that `map` keeps in flight: twice the sequences that one engine runs together by default."""
PAGE = 100
"""Jobs of one page; the service allows no more."""

ROWS = 32
"""Inputs that `map` puts into one job, for the tasks whose jobs take many: one job costs about as much as one row."""

Inputs = Any
"""What a task takes: a text, a chat's messages, an image's bytes, path or Pillow image, a mapping such as
`{"question": …, "context": …}`; or a list of these. Bytes, paths and images may stand anywhere in it."""


class JobCalls:
    """What can be done with jobs; `Tandem` adds files, training and adapters."""

    _transport: Transport

    def submit(
        self,
        task: str,
        inputs: Inputs,
        *,
        model: str | None = None,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        stream: bool = False,
        on_row_error: Literal["fail", "keep"] = "fail",
        idempotency_key: str | None = None,
        **scheduling: Unpack[SchedulingOptions],
    ) -> JobHandle:
        """Queue an inference job and return at once. Without a model, the catalogue's default for the task runs it.

        When and how it is run may be said by `priority`, `delay_seconds`, `not_before`, `deadline_seconds`, `retry`,
        `webhook` and `metadata`: see SchedulingOptions.

        A submission is safe to repeat: it carries an idempotency key, yours or a new one, so that one lost answer
        does not make two jobs. `stream` emits the text as events while it is written (text-generation). Of a list of
        inputs, one that cannot be served fails the job, or has its error among the rows with `on_row_error="keep"`.

        A queue that is full is waited for a while, as long as it asks. Raises QueueFull then, with the seconds after
        which to come back; InvalidRequest naming the field, UnsupportedTask, UnknownModel, UnknownAdapter,
        AdapterMismatch, IdempotencyConflict.
        """
        spec: dict[str, Any] = {"kind": "inference", "task": task, "inputs": wire_inputs(inputs, self._upload_media)}
        spec |= scheduling_fields(scheduling)
        if model is not None:
            spec["model"] = model
        if on_row_error != "fail":
            spec["on_row_error"] = on_row_error
        if adapter is not None:
            spec["adapter"] = adapter
        if parameters is not None:
            spec["parameters"] = dict(parameters)
        if stream:
            spec["stream"] = True
        return self._submit(spec, idempotency_key)

    def get(self, job_id: str) -> JobHandle:
        """The job as it stands. Raises UnknownJob."""
        return JobHandle.read(self.read_job(job_id), self)

    def read_job(self, job_id: str) -> dict[str, Any]:
        """The job's record as the service sends it. Raises UnknownJob."""
        record: dict[str, Any] = self._read("GET", f"/jobs/{job_id}")
        return record

    def jobs(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        model: str | None = None,
        limit: int | None = None,
    ) -> Iterator[JobHandle]:
        """Jobs, newest first, read page by page as they are asked for. Raises InvalidRequest."""
        wanted = {"state": state, "kind": kind, "model": model}
        return self._pages("/jobs", {name: value for name, value in wanted.items() if value is not None}, limit)

    def cancel(self, job: JobHandle | str) -> JobHandle:
        """Cancel a queued job at once, ask a running one to stop; an ended one stays as it is. Raises UnknownJob."""
        return JobHandle.read(self._read("POST", f"/jobs/{id_of(job)}/cancel"), self)

    def pause(self, job: JobHandle | str) -> JobHandle:
        """Hold a queued job back; a running one stops soon, keeps what it has, and waits. An ended one stays as it
        is. Its deadline goes on. Raises UnknownJob."""
        return JobHandle.read(self._read("POST", f"/jobs/{id_of(job)}/pause"), self)

    def resume(self, job: JobHandle | str) -> JobHandle:
        """Let a paused job go on. Raises UnknownJob."""
        return JobHandle.read(self._read("POST", f"/jobs/{id_of(job)}/resume"), self)

    def requeue(self, job: JobHandle | str) -> JobHandle:
        """Do a dead letter's work anew: the new job; asked again, the same one.

        Raises UnknownJob, Conflict if it is no dead letter, QueueFull.
        """
        return JobHandle.read(self._read("POST", f"/jobs/{id_of(job)}/requeue"), self)

    def events(
        self, job: JobHandle | str, *, after: str | None = None, timeout: float | None = None
    ) -> Iterator[JobEvent]:
        """What happens with a job, from its beginning or after an event's id, until it ends.

        A lost connection is taken up again where it broke. Raises UnknownJob, WaitTimeout.
        """
        return follow(self._transport, id_of(job), after=after, timeout=timeout)

    def wait(self, job: JobHandle | str, timeout: float | None = None) -> Any:
        """The job's result, as soon as it has one.

        Raises the error that the job failed with (PromptTooLong, OutOfMemory, WorkerLost, …; TandemError for one that
        has no class), Cancelled, DeadlineExceeded, WaitTimeout after `timeout` seconds, UnknownJob.
        """
        for _ in self.events(job, timeout=timeout):
            pass
        return self._result(job)

    def run(
        self,
        task: str,
        inputs: Inputs,
        *,
        model: str | None = None,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **scheduling: Unpack[SchedulingOptions],
    ) -> Any:
        """Submit and wait. Raises what `submit` and `wait` raise."""
        job = self.submit(task, inputs, model=model, adapter=adapter, parameters=parameters, **scheduling)
        return self.wait(job, timeout)

    def map(
        self,
        task: str,
        inputs: Iterable[Inputs],
        *,
        model: str | None = None,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        window: int = WINDOW,
        rows: int = ROWS,
        progress: bool = True,
        on_error: OnError = "raise",
        **scheduling: Unpack[SchedulingOptions],
    ) -> Iterator[Any]:
        """The result of every input, in the inputs' order, with at most `window` jobs in flight.

        text-generation makes one job of each input and gives its result; every other task makes one job of `rows`
        inputs and gives each input's own row. Inputs are read as room becomes free, so they may be a file of any size
        or a generator. With `on_error="return"` a row's error takes its place in the results; errors that every row
        would meet are always raised. When the caller stops, or an error is raised, the jobs in flight are cancelled.
        `progress` shows a bar where standard error is a terminal. Raises what `submit` and `wait` raise;
        InvalidRequest for a window or rows below 1.
        """
        for name, value in (("window", window), ("rows", rows)):
            if value < 1:
                raise InvalidRequest(f"`{name}` is {value}; it must be at least 1", param=name)

        def submit(item: Any, **options: Any) -> JobHandle:
            return self.submit(
                task, item, model=model, adapter=adapter, parameters=parameters, **options, **scheduling
            )

        results: Generator[Any, None, None]
        if task == "text-generation":
            results = in_order(
                inputs, start=submit, finish=self.wait, abandon=self.cancel, window=window, on_error=on_error
            )
        else:
            jobs = RowJobs(lambda some: submit(some, on_row_error="keep"), self.wait, self.cancel, error_of=error_of)
            results = each_row(
                in_order(
                    chunks(inputs, rows),
                    start=jobs.start,
                    finish=jobs.finish,
                    abandon=jobs.abandon,
                    window=window,
                    on_error="raise",
                ),
                on_error,
            )
        return with_progress(results, task, inputs) if progress else results

    def stream(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **scheduling: Unpack[SchedulingOptions],
    ) -> Iterator[str]:
        """Generate text and yield its pieces as they are written; a caller that stops cancels the job.

        One text (`n` is 1): the events of a job tell several apart.

        Raises what `submit` and `wait` raise; WorkerLost if the worker was lost and the next attempt wrote something
        else than what was yielded before (sampling without a seed).
        """
        job = self.submit(
            "text-generation", inputs, model=model, adapter=adapter, parameters=parameters, stream=True, **scheduling
        )
        has_ended = False
        try:
            state = yield from new_text(self.events(job, timeout=timeout))
            has_ended = True
            if state != JobState.SUCCEEDED:
                self._result(job)  # for what it failed with
        finally:
            if not has_ended:
                # The error that ended the stream, if one did, is the one to show.
                with suppress(TandemError):
                    self.cancel(job)

    def read_file(self, file: Mapping[str, Any]) -> bytes:
        """An image, a sound or another file of a result, which stands there as `{"artifact", "path", …}`.

        Raises UnknownArtifact; UnknownJob when the job's time to live is over.
        """
        content: bytes = self._transport.request("GET", str(file["path"]).removeprefix("/v1")).content
        return content

    def _result(self, job: JobHandle | str) -> Any:
        """Of a job that has ended. Raises what it failed with."""
        return self._read("GET", f"/jobs/{id_of(job)}/result")

    def _upload_media(self, content: bytes) -> str:
        return str(self._upload("media", io.BytesIO(content), "user_data").json()["id"])

    def _upload(self, name: str, content: BinaryIO, purpose: str) -> httpx.Response:
        # With a key of its own: one whose answer was lost may be sent again without making a second file.
        return self._transport.request(
            "POST",
            "/files",
            headers={"Idempotency-Key": new_key()},
            files={"file": (name, content)},
            data={"purpose": purpose},
        )

    def _submit(self, spec: Mapping[str, Any], idempotency_key: str | None) -> JobHandle:
        key = idempotency_key or new_key()
        return JobHandle.read(self._read("POST", "/jobs", json=spec, headers={"Idempotency-Key": key}), self)

    def _pages(self, path: str, params: dict[str, Any], limit: int | None) -> Iterator[JobHandle]:
        left = limit
        while left is None or left > 0:
            params["limit"] = PAGE if left is None else min(PAGE, left)
            page = self._read("GET", path, params=params)
            for record in page["data"]:
                yield JobHandle.read(record, self)
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]
            left = None if left is None else left - len(page["data"])

    def _read(self, method: str, path: str, **options: Any) -> Any:
        # Any: what JSON is; the records read out of it are typed.
        return self._transport.request(method, path, **options).json()


def new_key() -> str:
    """An idempotency key for one call."""
    return f"tandem-{uuid.uuid4().hex}"


def id_of(job: JobHandle | str) -> str:
    """The id of a job that a caller names in either way."""
    return job if isinstance(job, str) else job.id
