"""The client: what programs that produce jobs use. `tandem` itself exports the names that most need."""

from tandem.client.job_calls import Inputs
from tandem.client.records import Adapter, BatchRecord, JobHandle, Lane, Lanes, Model, UploadedFile
from tandem.client.scheduling import SchedulingOptions
from tandem.client.tandem import Tandem
from tandem.errors import ServiceUnreachable
from tandem.job import JobEvent

__all__ = [
    "Adapter",
    "BatchRecord",
    "Inputs",
    "JobEvent",
    "JobHandle",
    "Lane",
    "Lanes",
    "Model",
    "SchedulingOptions",
    "ServiceUnreachable",
    "Tandem",
    "UploadedFile",
]
