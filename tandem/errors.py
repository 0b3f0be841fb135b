"""The one error tree: every failure that Tandem names, with its stable code.

A class's docstring is its default message. `code` is what programs test, `status` the HTTP status that the API
answers with, `retryable` whether the same request may succeed later without a change.
"""

from typing import ClassVar


class TandemError(Exception):
    """Something failed inside Tandem."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.param = param
        """The request's field that is at fault, where one is."""
        super().__init__(self.message)


# The request is at fault: sent again unchanged, it fails again.


class InvalidRequest(TandemError):
    """The request is not valid."""

    code = "invalid_request"
    status = 400


class UnsupportedTask(InvalidRequest):
    """The model does not do this task."""

    code = "task_not_supported"


class PromptTooLong(InvalidRequest):
    """The prompt and the tokens asked for do not fit the model's context."""

    code = "context_length_exceeded"


class InvalidTrainingData(InvalidRequest):
    """The training data cannot be used."""

    code = "invalid_training_data"


class TrainingDiverged(InvalidRequest):
    """The training's loss or gradient is no longer a finite number."""

    code = "training_diverged"


class AdapterMismatch(InvalidRequest):
    """The adapter was trained on another base model."""

    code = "adapter_base_mismatch"


class InvalidModel(InvalidRequest):
    """The model's files cannot be loaded as the catalogue describes them."""

    code = "invalid_model"


class PayloadTooLarge(InvalidRequest):
    """The request's body is larger than the limit."""

    code = "payload_too_large"
    status = 413


class AuthenticationFailed(TandemError):
    """Send a valid API key as `Authorization: Bearer <key>`; `tandem up` prints it."""

    code = "invalid_api_key"
    status = 401


class Forbidden(TandemError):
    """This needs an operator's key: TANDEM_API_KEY, or one that was made with `tandem keys new NAME --operator`."""

    code = "forbidden"
    status = 403


class NotFound(TandemError):
    """There is no such thing here."""

    code = "not_found"
    status = 404


class UnknownModel(NotFound):
    """No model of this name is in the catalogue."""

    code = "model_not_found"


class UnknownAdapter(NotFound):
    """There is no adapter with this id."""

    code = "adapter_not_found"


class UnknownJob(NotFound):
    """There is no job with this id, or its time to live is over."""

    code = "job_not_found"


class UnknownResponse(NotFound):
    """There is no response with this id, or its time to live is over."""

    code = "response_not_found"


class UnknownFile(NotFound):
    """There is no file with this id."""

    code = "file_not_found"


class UnknownBatch(NotFound):
    """There is no batch with this id, or its time to live is over."""

    code = "batch_not_found"


class UnknownUpload(NotFound):
    """There is no upload with this id, or its time is over."""

    code = "upload_not_found"


class UnknownEndpoint(NotFound):
    """There is no webhook endpoint with this id."""

    code = "webhook_endpoint_not_found"


class UnknownArtifact(NotFound):
    """There is no artifact with this digest."""

    code = "artifact_not_found"


class Conflict(TandemError):
    """The request does not fit the state of what it names."""

    code = "conflict"
    status = 409


class IdempotencyConflict(Conflict):
    """This Idempotency-Key was used with another body; use a new key for a new request."""

    code = "idempotency_key_reused"


class ResultNotReady(Conflict):
    """The job has no result yet."""

    code = "result_not_ready"


# The service is at fault: the same request may succeed later.


class QueueUnavailable(TandemError):
    """The queue's Redis server does not answer; try again (with an Idempotency-Key, if something is to be made)."""

    code = "queue_unavailable"
    status = 503
    retryable = True


class TooManyRequests(TandemError):
    """This API process holds as many open requests as it can; try again later."""

    code = "too_many_requests"
    status = 503
    retryable = True


class QueueFull(TandemError):
    """The queue takes no more jobs now; send this one again later."""

    code = "queue_full"
    status = 429
    retryable = True

    def __init__(self, message: str | None = None, *, param: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after
        """Seconds after which there may be room."""


class ServiceUnreachable(TandemError):
    """The service cannot be reached; is it running (`tandem up`), and is TANDEM_URL its address?"""

    code = "service_unreachable"
    status = 503
    retryable = True


class WaitTimeout(TandemError):
    """The job did not end within the time that the caller waited; it goes on."""

    code = "wait_timeout"
    status = 504
    retryable = True


class OutOfMemory(TandemError):
    """The device's memory does not suffice for this now."""

    code = "out_of_memory"
    retryable = True


class WorkerLost(TandemError):
    """Every worker that ran this job died or stopped answering before it ended."""

    code = "worker_lost"
    retryable = True


# What stops an attempt without being a failure of the job.


class AttemptStopped(TandemError):
    """The attempt must stop: its job was cancelled, taken back or released."""

    code = "attempt_stopped"


class Cancelled(AttemptStopped):
    """The job was cancelled."""

    code = "cancelled"
    status = 409


class Superseded(AttemptStopped):
    """The attempt's fence is old: the job was given to another attempt, or has ended."""

    code = "superseded"


class Draining(AttemptStopped):
    """The worker is shutting down; the job goes back to its queue uncharged."""

    code = "draining"


class Paused(AttemptStopped):
    """The job was paused; it goes back to its queue uncharged and waits there to be resumed."""

    code = "paused"


class DeadlineExceeded(AttemptStopped):
    """The job's deadline passed before it had ended."""

    code = "deadline_exceeded"
    status = 504


# A startup that cannot go on.


class ConfigurationError(TandemError):
    """A setting has a value that cannot be used."""

    code = "configuration_error"
