"""The calls on jobs: submit, follow, wait, map, stream, cancel, pause, requeue."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Unpack

from tandem.client.event_stream import follow
from tandem.client.mapping import OnError, in_order, with_progress
from tandem.client.records import JobHandle
from tandem.client.scheduling import SchedulingOptions, scheduling_fields
from tandem.client.token_text import new_text
from tandem.client.transport import Transport
from tandem.errors import InvalidRequest, TandemError
from tandem.job import JobEvent

WINDOW = 64
"""Jobs that `map` keeps in flight: twice the sequences that one engine runs together by default."""
PAGE = 100
"""Jobs of one page; the service allows no more."""

Inputs = str | Sequence[str] | Sequence[Mapping[str, Any]]
"""A text, several texts (encoder tasks), or a chat's messages: `[{"role": "user", "content": "…"}]`."""


class JobCalls:
    """What can be done with jobs; `Tandem` adds files, training and adapters."""

    _transport: Transport

    def submit(
        self,
        task: str,
        inputs: Inputs,
        *,
        model: str,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        stream: bool = False,
        idempotency_key: str | None = None,
        **scheduling: Unpack[SchedulingOptions],
    ) -> JobHandle:
        """Queue an inference job and return at once.

        When and how it is run may be said by `priority`, `delay_seconds`, `not_before`, `deadline_seconds`, `retry`,
        `webhook` and `metadata`: see SchedulingOptions.

        A submission is safe to repeat: it carries an idempotency key, yours or a new one, so that one lost answer
        does not make two jobs. `stream` emits the text as events while it is written (text-generation).

        A queue that is full is waited for a while, as long as it asks. Raises QueueFull then, with the seconds after
        which to come back; InvalidRequest naming the field, UnsupportedTask, UnknownModel, UnknownAdapter,
        AdapterMismatch, IdempotencyConflict.
        """
        spec: dict[str, Any] = {"kind": "inference", "task": task, "model": model, "inputs": inputs}
        spec |= scheduling_fields(scheduling)
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
        return self._read("GET", f"/jobs/{id_of(job)}/result")

    def run(
        self,
        task: str,
        inputs: Inputs,
        *,
        model: str,
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
        model: str,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        window: int = WINDOW,
        progress: bool = True,
        on_error: OnError = "raise",
        **scheduling: Unpack[SchedulingOptions],
    ) -> Iterator[Any]:
        """One job for each input, the results in the inputs' order, with at most `window` jobs in flight.

        Inputs are read as room becomes free, so they may be a file of any size or a generator. With
        `on_error="return"` a row's error takes its place in the results; errors that every row would meet are always
        raised. When the caller stops, or an error is raised, the jobs in flight are cancelled. `progress` shows a
        bar where standard error is a terminal. Raises what `submit` and `wait` raise; InvalidRequest for a window
        below 1.
        """
        if window < 1:
            raise InvalidRequest(f"`window` is {window}; at least one job must be in flight", param="window")
        results = in_order(
            inputs,
            start=lambda item: self.submit(
                task, item, model=model, adapter=adapter, parameters=parameters, **scheduling
            ),
            finish=self.wait,
            abandon=self.cancel,
            window=window,
            on_error=on_error,
        )
        return with_progress(results, task, inputs) if progress else results

    def stream(
        self,
        inputs: Inputs,
        *,
        model: str,
        adapter: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **scheduling: Unpack[SchedulingOptions],
    ) -> Iterator[str]:
        """Generate text and yield its pieces as they are written; a caller that stops cancels the job.

        Raises what `submit` and `wait` raise; WorkerLost if the worker was lost and the next attempt wrote something
        else than what was yielded before (sampling without a seed).
        """
        job = self.submit(
            "text-generation", inputs, model=model, adapter=adapter, parameters=parameters, stream=True, **scheduling
        )
        has_ended = False
        try:
            yield from new_text(self.events(job, timeout=timeout))
            has_ended = True
            self.wait(job)  # for its failure, if it has one
        finally:
            if not has_ended:
                # The error that ended the stream, if one did, is the one to show.
                with suppress(TandemError):
                    self.cancel(job)

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
