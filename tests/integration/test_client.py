"""The client against a whole running service, with the real models."""

import os
import signal
from itertools import islice
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tandem import (
    AuthenticationFailed,
    Cancelled,
    IdempotencyConflict,
    InvalidRequest,
    InvalidTrainingData,
    JobHandle,
    PromptTooLong,
    Tandem,
    UnknownAdapter,
    UnknownJob,
    UnknownModel,
    WaitTimeout,
)
from tandem.client import job_calls
from tandem.embedded_service import EmbeddedService
from tandem.job import JobState
from tandem.settings import Settings

CHAT = "smollm2-135m-instruct"
EMBEDDING = "all-minilm-l6-v2"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
LONG = {"max_new_tokens": 1500, "stop": []}
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}]}
    for word in ("ahoy", "hello", "welcome", "goodbye")
]


def long_job(client: Tandem) -> JobHandle:
    """One that is certain to run while a test does something to it."""
    return client.submit("text-generation", "1 2 3 4 5 6 7 8 9 10 11 12 13", model=CHAT, parameters=LONG)


class TestInference:
    def test_a_job_is_submitted_followed_and_has_a_result(self, client: Tandem) -> None:
        job = client.submit("text-generation", QUESTION, model=CHAT, parameters={"max_new_tokens": 20})
        result = job.wait(timeout=240)
        assert "Paris" in result["generated_text"]
        ended = job.refresh()
        assert (ended.state, ended.attempt, ended.task) == (JobState.SUCCEEDED, 1, "text-generation")
        assert ended.started_at is not None
        assert ended.finished_at is not None
        assert ended.created_at <= ended.started_at <= ended.finished_at
        assert client.wait(job.id) == result

    def test_its_events_tell_its_states(self, client: Tandem) -> None:
        job = client.submit("feature-extraction", "a text", model=EMBEDDING)
        states = [event.data["state"] for event in job.events(timeout=240) if event.type == "state"]
        assert states == ["queued", "running", "succeeded"]

    def test_streamed_pieces_are_the_text(self, client: Tandem) -> None:
        pieces = list(client.stream(QUESTION, model=CHAT, parameters={"max_new_tokens": 20}))
        answer = client.run("text-generation", QUESTION, model=CHAT, parameters={"max_new_tokens": 20})
        assert len(pieces) > 1
        assert "".join(pieces) == answer["generated_text"]

    def test_a_stream_that_nobody_reads_any_more_is_cancelled(self, client: Tandem) -> None:
        stream = client.stream("1 2 3 4 5 6 7 8 9 10 11 12 13", model=CHAT, parameters=LONG)
        assert len(list(islice(stream, 2))) == 2
        stream.close()
        job = next(client.jobs(model=CHAT, limit=1))
        with pytest.raises(Cancelled):
            job.wait(timeout=240)

    def test_map_keeps_order_and_each_row_its_error(self, client: Tandem) -> None:
        texts = [f"text number {number}" for number in range(20)]
        results = list(
            client.map("feature-extraction", [*texts[:10], "", *texts[10:]], model=EMBEDDING, on_error="return")
        )
        failed = results.pop(10)
        assert isinstance(failed, InvalidRequest)
        assert failed.param == "inputs.0"
        together = client.run("feature-extraction", texts, model=EMBEDDING)["rows"]
        for one, row in zip(results, together, strict=True):
            assert one == pytest.approx(row, abs=1e-4)

    def test_waiting_has_a_limit_and_the_job_goes_on_until_it_is_cancelled(self, client: Tandem) -> None:
        job = long_job(client)
        with pytest.raises(WaitTimeout):
            job.wait(timeout=0.3)
        assert not job.refresh().state.is_terminal
        job.cancel()
        with pytest.raises(Cancelled):
            job.wait(timeout=240)
        assert job.refresh().state is JobState.CANCELLED

    def test_a_job_is_waited_for_though_the_api_dies(self, client: Tandem, service: EmbeddedService) -> None:
        """The supervisor starts it again, and the client takes the event stream up where it broke."""
        job = long_job(client)
        events = job.events(timeout=240)
        first = next(events)
        os.kill(service.pid_of("api"), signal.SIGKILL)
        client.cancel(job)
        rest = list(events)
        assert rest[-1].data["state"] == "cancelled"
        ids = [first.id, *(event.id for event in rest)]
        assert len(set(ids)) == len(ids)

    def test_what_a_job_failed_with_is_raised(self, client: Tandem) -> None:
        with pytest.raises(PromptTooLong, match=r"\d"):
            client.run("text-generation", "word " * 5000, model=CHAT, timeout=240)


class TestSubmission:
    def test_a_key_of_ones_own_names_one_job(self, client: Tandem) -> None:
        first = client.submit("feature-extraction", "one", model=EMBEDDING, idempotency_key="only-once")
        again = client.submit("feature-extraction", "one", model=EMBEDDING, idempotency_key="only-once")
        assert first.id == again.id
        with pytest.raises(IdempotencyConflict):
            client.submit("feature-extraction", "two", model=EMBEDDING, idempotency_key="only-once")

    def test_a_list_is_read_page_by_page(self, client: Tandem, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_calls, "PAGE", 2)
        ids = [client.submit("feature-extraction", f"page {n}", model=EMBEDDING).id for n in range(5)]
        assert [job.id for job in client.jobs(model=EMBEDDING, limit=5)] == ids[::-1]
        assert [job.id for job in islice(client.jobs(kind="inference"), 5)] == ids[::-1]
        for job_id in ids:
            client.wait(job_id, timeout=240)

    def test_bad_input_is_named(self, client: Tandem) -> None:
        with pytest.raises(UnknownModel, match=EMBEDDING):
            client.submit("text-generation", "hello", model="gpt-99")
        with pytest.raises(UnknownAdapter):
            client.submit("text-generation", "hello", model=CHAT, adapter="ft:none")
        with pytest.raises(InvalidRequest) as error:
            client.submit("text-generation", "hello", model=CHAT, parameters={"temperature": 9})
        assert error.value.param == "parameters.temperature"
        with pytest.raises(UnknownJob):
            client.get("job_000000000000000000000000")

    def test_a_wrong_key_is_said(self, service: EmbeddedService) -> None:
        with Tandem(service.api_url, "wrong") as client, pytest.raises(AuthenticationFailed):
            client.models()


class TestTraining:
    # PEFT 0.21 asks for a property that transformers 5.23 has renamed.
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_an_adapter_is_trained_used_downloaded_and_deleted(self, client: Tandem, tmp_path: Path) -> None:
        result = client.finetune(
            CHAT,
            ROWS,
            ROWS[:1],
            suffix="words",
            method={"r": 4, "target_modules": ["q_proj", "v_proj"]},
            hyperparameters={"max_steps": 2, "batch_size": 2, "max_tokens": 64},
            wait=True,
        )
        adapter = client.adapter(result["adapter"])
        assert (adapter.base, adapter.method["r"]) == (CHAT, 4)
        assert adapter.metrics["steps"] == 2
        assert adapter.id in {one.id for one in client.adapters()}
        assert adapter.id in {model.id for model in client.models() if model.base == CHAT}
        assert client.run("text-generation", QUESTION, model=adapter.id, parameters={"max_new_tokens": 4})

        folder = client.download_adapter(adapter.id, tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(Settings.read().models_dir / CHAT, local_files_only=True)
        loaded = PeftModel.from_pretrained(base, folder)
        assert loaded.peft_config["default"].r == 4

        client.delete_adapter(adapter.id)
        with pytest.raises(UnknownAdapter):
            client.submit("text-generation", "hello", model=CHAT, adapter=adapter.id)

    def test_data_may_be_a_file_and_faulty_lines_are_named(self, client: Tandem, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', encoding="utf-8")
        file = client.upload(path)
        assert (file.filename, file.purpose, file.bytes) == ("rows.jsonl", "fine-tune", path.stat().st_size)
        for data in (path, file, file.id):
            with pytest.raises(InvalidTrainingData, match="line 2"):
                client.finetune(CHAT, data)

    def test_a_file_that_is_not_there_is_said_before_anything_is_sent(self, client: Tandem, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match=r"none\.jsonl cannot be read"):
            client.finetune(CHAT, tmp_path / "none.jsonl")
