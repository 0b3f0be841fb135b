"""The calls on batches: many requests in one file, answered in the background."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from tandem.client.job_calls import PAGE, new_key
from tandem.client.queue_calls import QueueCalls
from tandem.client.records import BatchRecord
from tandem.errors import WaitTimeout
from tandem.specs.batch import BatchEndpoint

POLL_SECONDS = 1.0
"""Between two looks at a batch, which has no events."""


class BatchCalls(QueueCalls):
    """What is done with batches. The file is uploaded first, with the purpose `batch`."""

    def submit_batch(
        self,
        file_id: str,
        *,
        endpoint: BatchEndpoint = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> BatchRecord:
        """Have every request of an uploaded file answered. Raises InvalidRequest naming the field, UnknownFile."""
        asked: dict[str, Any] = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": completion_window,
            "metadata": None if metadata is None else dict(metadata),
        }
        return BatchRecord.read(self._read("POST", "/batches", json=asked, headers={"Idempotency-Key": new_key()}))

    def batch(self, batch_id: str) -> BatchRecord:
        """Raises UnknownBatch."""
        return BatchRecord.read(self._read("GET", f"/batches/{batch_id}"))

    def batches(self, *, limit: int | None = None) -> Iterator[BatchRecord]:
        """Your batches, newest first; read page by page as they are asked for."""
        left, params = limit, dict[str, Any]()
        while left is None or left > 0:
            params["limit"] = PAGE if left is None else min(PAGE, left)
            page = self._read("GET", "/batches", params=params)
            yield from map(BatchRecord.read, page["data"])
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]
            left = None if left is None else left - len(page["data"])

    def cancel_batch(self, batch_id: str) -> BatchRecord:
        """End a batch early; what was answered is kept. Raises UnknownBatch, Conflict if it has ended otherwise."""
        return BatchRecord.read(self._read("POST", f"/batches/{batch_id}/cancel"))

    def wait_for_batch(self, batch_id: str, timeout: float | None = None) -> BatchRecord:
        """The batch once it has ended, however. Raises UnknownBatch, WaitTimeout after `timeout` seconds."""
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while not (batch := self.batch(batch_id)).has_ended:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise WaitTimeout(f"batch {batch_id} is {batch.status} after {timeout:g} s; it goes on")
            time.sleep(POLL_SECONDS)  # the service has no event for it
        return batch

    def file_content(self, file_id: str) -> bytes:
        """What is in a file, such as a batch's output. Raises UnknownFile, UnknownArtifact."""
        content: bytes = self._transport.request("GET", f"/files/{file_id}/content").content
        return content
