"""Batches: what a user may ask for, and the spec of a shard, which is how a batch's rows reach the workers."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tandem.specs.base import MAX_DELAY_SECONDS, Name, Priority, Scheduling
from tandem.specs.tasks import Task

MAX_ROWS = 50_000
"""Rows of one batch (OpenAI's limit)."""
MAX_BATCH_BYTES = 200 * 2**20
"""Of its file (OpenAI's limit)."""
MAX_SHARD_ROWS = 128
"""Rows of one shard: enough to fill an engine's slots several times over, few enough that a batch of 2,000 rows is
spread over many workers, and that a worker is not bound to one model for long."""
UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")

BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
"""The doors whose requests may be the rows of a batch."""


def window_seconds(window: str) -> float:
    """How long `24h`, `30m`, `90s` or `7d` is. Raises ValueError that names the form and the limit."""
    written = WINDOW.fullmatch(window)
    seconds = 0.0 if written is None else int(written[1]) * UNIT_SECONDS[written[2]]
    if not 0.0 < seconds <= MAX_DELAY_SECONDS:
        raise ValueError(
            f"it is {window!r}; write a number and s, m, h or d, such as `24h`, and no more than "
            f"{MAX_DELAY_SECONDS / UNIT_SECONDS['d']:.0f}d"
        )
    return seconds


def _is_a_window(window: str) -> str:
    window_seconds(window)
    return window


CompletionWindow = Annotated[str, AfterValidator(_is_a_window)]
"""How long a batch may take before it expires (OpenAI takes `24h` alone)."""

Blob = Annotated[str, Field(pattern=r"^artifact-[0-9a-f]{64}$")]
"""A blob of the artifact store, named so that whoever reads the record sees that it refers to one."""


class BatchSpec(Scheduling):
    """One shard of a batch: up to MAX_SHARD_ROWS of its rows, all of one model and task.

    The service makes these itself. A row's failure is kept beside the results of the others; the job fails only for
    what stops every row, such as a model that cannot be loaded.
    """

    kind: Literal["batch"] = "batch"
    batch: str = Field(pattern=r"^batch_[0-9a-f]{24}$")
    task: Task
    model: Name
    """A base model of the catalogue; rows may name its adapters."""
    rows: Blob
    """JSON lines, as shard_rows.py reads them."""
    count: int = Field(ge=1, le=MAX_SHARD_ROWS)
    """Rows in it."""
    media: tuple[Blob, ...] = ()
    """Images, sounds and other files that the rows name: they are kept as long as this spec."""
    priority: Priority = "low"
    """Rows fill what interactive work leaves."""
