"""A row of a batch that kills its worker, again and again: every other row of its shard is answered."""

from tandem.artifacts import ArtifactStore
from tandem.job import JobState
from tandem.job_reads import media_references
from tandem.shard_rows import ShardRow, merged
from tandem.specs import Scheduling
from tandem.specs.batch import BatchSpec
from tandem.submission import stored_spec
from tests.chaos.light_worker import POISON
from tests.chaos.stage import LANE, Stage

ROWS, POISONOUS = 40, 7
CRASHES_ALLOWED = 2
"""The shard is lost more often than that."""


def test_a_row_that_kills_its_worker_fails_alone(stage: Stage) -> None:
    """By SIGKILL, as from the system's memory killer; others run beside it the first time. It has its own error."""
    artifacts = ArtifactStore(f"file://{stage.folder}/artifacts")
    texts = {number: POISON if number == POISONOUS else f"text {number:02}" for number in range(1, ROWS + 1)}
    rows = [ShardRow(number, {"inputs": text}).line() for number, text in texts.items()]
    spec = BatchSpec(
        batch="batch_" + "0" * 24,
        task="text-generation",
        model="light",
        rows=f"artifact-{artifacts.put_stream(rows).digest}",
        count=ROWS,
    )
    shard = stage.jobs.submit(
        kind="batch", model="light", lane=LANE, owner="test", spec=stored_spec(spec), scheduling=Scheduling()
    ).job
    worker = stage.worker(crashes_allowed=CRASHES_ALLOWED)

    def has_ended() -> bool:
        nonlocal worker
        if not worker.is_alive():  # as the supervisor does
            worker = stage.worker(crashes_allowed=CRASHES_ALLOWED)
        return stage.jobs.get(shard.id).state.is_terminal

    stage.wait_until(has_ended, "the shard has ended")
    job = stage.jobs.get(shard.id)
    assert job.state is JobState.SUCCEEDED, job.failure
    assert (job.result["completed"], job.result["failed"]) == (ROWS - 1, 1)
    assert job.crashes > CRASHES_ALLOWED
    parts = [digest for name in job.result["parts"] for digest in media_references(name)]
    answers = {answer.row: answer for answer in merged(artifacts, parts)}
    assert sorted(answers) == list(texts)
    for number, answer in answers.items():
        if number == POISONOUS:
            assert answer.failure is not None
            assert answer.failure.code == "worker_lost"
        else:
            assert answer.result == {"said": texts[number]}
