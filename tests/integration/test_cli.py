"""The commands of producers, as subprocesses against a whole running service."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tandem import Tandem

CHAT = "smollm2-135m-instruct"
EMBEDDING = "all-minilm-l6-v2"


class Shell:
    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder

    def tandem(self, *arguments: str, given: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command and check its exit code."""
        ended = subprocess.run(
            [sys.executable, "-m", "tandem.cli", *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "NO_COLOR": "1", **self._environment},
            cwd=self._folder,
            check=False,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended


@pytest.fixture
def shell(service_environment: dict[str, str], tmp_path: Path) -> Shell:
    return Shell(service_environment, tmp_path)


class TestSubmit:
    def test_a_prompt_is_answered(self, shell: Shell) -> None:
        ended = shell.tandem(
            "submit",
            "--model",
            CHAT,
            "--chat",
            "--parameters",
            '{"max_new_tokens": 20}',
            "What is the capital of France?",
        )
        assert "Paris" in ended.stdout

    def test_a_text_can_be_streamed(self, shell: Shell) -> None:
        options = ("--model", CHAT, "--chat", "--parameters", '{"max_new_tokens": 20}')
        streamed = shell.tandem("submit", *options, "--stream", "Say hello.").stdout
        assert streamed == shell.tandem("submit", *options, "Say hello.").stdout != ""

    def test_lines_of_standard_input_are_answered_in_order(self, shell: Shell) -> None:
        ended = shell.tandem(
            "submit", "--task", "feature-extraction", "--model", EMBEDDING, "--json", given="one\n\ntwo\nthree\n"
        )
        results = [json.loads(line) for line in ended.stdout.splitlines()]
        assert [len(vector) for vector in results] == [384, 384, 384]
        assert results[0] != results[1]

    def test_a_row_that_fails_does_not_stop_the_others(self, shell: Shell, tmp_path: Path) -> None:
        (tmp_path / "lines").write_text("a text\n" + "word " * 5000 + "\nanother\n", encoding="utf-8")
        options = ("--task", "text-classification", "--model", "minilm-topics", "--file", "lines", "--json")
        ended = shell.tandem("submit", *options, code=1)
        first, second, third = (json.loads(line) for line in ended.stdout.splitlines())
        assert second is None
        assert first[0].keys() == third[0].keys() == {"label", "score"}
        assert "context_length_exceeded" in ended.stderr

    def test_without_waiting_it_prints_the_id(self, shell: Shell, client: Tandem) -> None:
        ended = shell.tandem("submit", "--task", "feature-extraction", "--model", EMBEDDING, "--no-wait", "a text")
        assert client.wait(ended.stdout.strip(), timeout=240)["rows"]


class TestMistakes:
    def test_a_wrong_option_is_a_usage_error(self, shell: Shell) -> None:
        assert "not JSON" in shell.tandem("submit", "--model", CHAT, "--parameters", "{", "hi", code=2).stderr
        assert "PROMPTS" in shell.tandem("submit", "--model", CHAT, code=2).stderr
        assert "--stream" in shell.tandem("submit", "--model", CHAT, "--stream", "--json", "hi", code=2).stderr

    def test_an_error_is_one_line_with_code_message_and_fix(self, shell: Shell) -> None:
        ended = shell.tandem("submit", "--model", "gpt-99", "hi", code=1)
        assert re.fullmatch(r"error \[model_not_found\] .*'gpt-99'.* — `tandem models` .*\n", ended.stderr)
        assert ended.stdout == ""

    def test_no_service_is_said_with_the_fix(self, tmp_path: Path) -> None:
        alone = Shell({"TANDEM_URL": "", "TANDEM_API_KEY": ""}, tmp_path)
        assert "start one with `tandem up`" in alone.tandem("jobs", code=2).stderr


class TestListing:
    def test_jobs_are_listed_and_filtered(self, shell: Shell, client: Tandem) -> None:
        job = client.submit("feature-extraction", "a text to list", model=EMBEDDING)
        job.wait(timeout=240)
        shown = shell.tandem("jobs", "--model", EMBEDDING, "--state", "succeeded", "--limit", "3").stdout.splitlines()
        columns = ["job", "kind", "task", "model", "priority", "state", "attempts", "progress", "age", "took"]
        assert shown[0].split() == columns
        row = [job.id, "inference", "feature-extraction", EMBEDDING, "normal", "succeeded", "1"]
        assert shown[1].split()[:7] == row
        listed = json.loads(shell.tandem("jobs", "--limit", "1", "--json").stdout)
        assert listed[0]["id"] == job.id
        assert "no such jobs" in shell.tandem("jobs", "--model", "none").stdout

    def test_models_are_listed(self, shell: Shell) -> None:
        assert CHAT in shell.tandem("models").stdout
        assert {EMBEDDING, CHAT} <= {model["id"] for model in json.loads(shell.tandem("models", "--json").stdout)}


class TestFollowing:
    def test_a_training_shows_its_losses_and_their_curve(self, shell: Shell, client: Tandem, tmp_path: Path) -> None:
        rows = [{"prompt": f"{number} and 1 is", "completion": f" {number + 1}"} for number in range(4)]
        job = client.finetune(CHAT, rows, rows, suffix="cli", hyperparameters={"max_steps": 3, "max_tokens": 32})
        shown = shell.tandem("logs", "-f", job.id).stdout
        assert re.search(r"metrics +step 3  loss \d", shown)
        assert "held out" in shown
        assert "┤" in shown
        adapter = job.wait()["adapter"]

        assert adapter in shell.tandem("adapters").stdout
        assert json.loads(shell.tandem("adapters", "list", "--json").stdout)[0]["id"] == adapter
        assert re.search(rf"base +{CHAT}", shell.tandem("adapters", "show", adapter).stdout)
        assert f"{adapter} keeps its slot" in shell.tandem("adapters", "pin", adapter).stdout
        client.run("text-generation", "7 and", model=adapter, parameters={"max_new_tokens": 1})
        assert json.loads(shell.tandem("adapters", "show", adapter, "--json").stdout)["pinned"]
        assert "when others need it" in shell.tandem("adapters", "unpin", adapter).stdout
        shell.tandem("adapters", "download", adapter, "folder")
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {
            p.name for p in (tmp_path / "folder").iterdir()
        }
        shell.tandem("adapters", "merge", adapter, "merged")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            p.name for p in (tmp_path / "merged").iterdir()
        }
        shell.tandem("adapters", "delete", adapter, given="n\n", code=1)
        shell.tandem("adapters", "delete", adapter, "--yes")
        assert "adapter_not_found" in shell.tandem("adapters", "show", adapter, code=1).stderr

    def test_a_running_job_shows_what_was_so_far_and_can_be_cancelled(self, shell: Shell, client: Tandem) -> None:
        job = client.submit(
            "text-generation", "1 2 3 4 5 6 7 8 9 10", model=CHAT, parameters={"max_new_tokens": 1500}
        )
        next(event for event in job.events(timeout=240) if event.data.get("state") == "running")
        shown = shell.tandem("logs", job.id).stdout
        assert "queued" in shown
        assert "running" in shown
        shell.tandem("cancel", job.id)
        assert "cancelled" in shell.tandem("logs", "-f", job.id).stdout
        assert "had ended before" in shell.tandem("cancel", job.id).stdout

    def test_a_failed_jobs_reason_ends_its_log(self, shell: Shell, client: Tandem) -> None:
        job = client.submit("text-generation", "word " * 5000, model=CHAT)
        assert "context_length_exceeded" in shell.tandem("logs", "-f", job.id, code=1).stderr
        assert "job_not_found" in shell.tandem("logs", "job_none", code=1).stderr
