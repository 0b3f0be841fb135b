"""Ended jobs, as the store gives them."""

from typing import Any

from tandem.job import Job, JobState

CREATED_AT, FINISHED_AT = 1_800_000_000.0, 1_800_000_012.345


def ended_job(job_id: str = "job_1", url: str = "https://receiver.example/hook", **changes: Any) -> Job:
    record: dict[str, Any] = {
        "id": job_id,
        "kind": "inference",
        "state": JobState.SUCCEEDED,
        "owner": "default",
        "model": "smollm2",
        "lane": "inference.smollm2",
        "spec": {
            "kind": "inference",
            "task": "text-generation",
            "model": "smollm2",
            "inputs": "the prompt",
            "webhook": {"url": url},
            "metadata": {"order": "42"},
        },
        "attempt": 1,
        "result": {"text": "the answer"},
        "created_at": CREATED_AT,
        "finished_at": FINISHED_AT,
        "sequence": 1,
    }
    return Job.model_validate(record | changes)
