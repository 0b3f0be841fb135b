"""Tandem: asynchronous inference and fine-tuning jobs on GPUs that you own.

from tandem import Tandem

client = Tandem()
print(client.run("text-generation", "The capital of France is", model="smollm2-135m-instruct"))
"""

from typing import TYPE_CHECKING, Any

from tandem.errors import (
    AdapterMismatch,
    AuthenticationFailed,
    Cancelled,
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    IdempotencyConflict,
    InvalidModel,
    InvalidRequest,
    InvalidTrainingData,
    NotFound,
    OutOfMemory,
    PayloadTooLarge,
    PromptTooLong,
    QueueFull,
    QueueUnavailable,
    ResultNotReady,
    ServiceUnreachable,
    TandemError,
    UnknownAdapter,
    UnknownArtifact,
    UnknownFile,
    UnknownJob,
    UnknownModel,
    UnsupportedTask,
    WaitTimeout,
    WorkerLost,
)

if TYPE_CHECKING:
    from tandem.client import JobHandle, Tandem

    __version__: str

__all__ = [
    "AdapterMismatch",
    "AuthenticationFailed",
    "Cancelled",
    "ConfigurationError",
    "Conflict",
    "DeadlineExceeded",
    "Forbidden",
    "IdempotencyConflict",
    "InvalidModel",
    "InvalidRequest",
    "InvalidTrainingData",
    "JobHandle",
    "NotFound",
    "OutOfMemory",
    "PayloadTooLarge",
    "PromptTooLong",
    "QueueFull",
    "QueueUnavailable",
    "ResultNotReady",
    "ServiceUnreachable",
    "Tandem",
    "TandemError",
    "UnknownAdapter",
    "UnknownArtifact",
    "UnknownFile",
    "UnknownJob",
    "UnknownModel",
    "UnsupportedTask",
    "WaitTimeout",
    "WorkerLost",
    "__version__",
]

FROM_CLIENT = frozenset({"JobHandle", "Tandem"})


def __getattr__(name: str) -> Any:
    """The client and the version, loaded at first use: every process of the service imports this package."""
    if name in FROM_CLIENT:
        from tandem import client

        return getattr(client, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("tandem-jobs")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
