"""Files: upload, list, read, delete; and what training data must be."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.api.api_server import FILE_BYTES
from tests.integration.api.calls import error
from tests.integration.api.stand_in_worker import CHAT_MODEL

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = json.dumps(ROW).encode() + b"\n"


def upload(client: httpx.Client, content: bytes, *, purpose: str = "fine-tune", name: str = "rows.jsonl") -> str:
    answer = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_a_file_comes_back_as_it_was_uploaded(client: httpx.Client) -> None:
    file_id = upload(client, LINE * 3, name="größe.jsonl")
    file = client.get(f"/v1/files/{file_id}").json()
    assert (file["object"], file["bytes"], file["filename"]) == ("file", 3 * len(LINE), "größe.jsonl")
    assert (file["purpose"], file["status"]) == ("fine-tune", "processed")
    content = client.get(f"/v1/files/{file_id}/content")
    assert content.content == LINE * 3
    assert "gr%C3%B6%C3%9Fe.jsonl" in content.headers["content-disposition"]


def test_a_deleted_file_is_gone(client: httpx.Client) -> None:
    file_id = upload(client, LINE)
    assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    for answer in (
        client.get(f"/v1/files/{file_id}"),
        client.get(f"/v1/files/{file_id}/content"),
        client.delete(f"/v1/files/{file_id}"),
    ):
        assert (answer.status_code, error(answer)["code"]) == (404, "file_not_found")
    assert client.get("/v1/files").json()["data"] == []


def test_files_are_listed_in_pages_and_by_purpose(client: httpx.Client) -> None:
    oldest = upload(client, LINE)
    middle = upload(client, LINE, purpose="batch")
    newest = upload(client, LINE)

    def ids(**query: str | int) -> tuple[list[str], bool]:
        page = client.get("/v1/files", params=query).json()
        return [file["id"] for file in page["data"]], page["has_more"]

    assert ids() == ([newest, middle, oldest], False)
    assert ids(order="asc", limit=2) == ([oldest, middle], True)
    assert ids(order="asc", after=middle) == ([newest], False)
    assert ids(purpose="batch") == ([middle], False)
    answer = client.get("/v1/files", params={"after": "file-none"})
    assert (answer.status_code, error(answer)["param"]) == (404, "after")


@pytest.mark.parametrize(
    ("data", "files", "param", "said"),
    [
        ({"purpose": "assistants"}, {"file": b"x"}, "purpose", "'fine-tune'"),
        ({}, {"file": b"x"}, "purpose", "missing"),
        ({"purpose": "batch"}, {"other": b"x"}, "file", "missing"),
        ({"purpose": "batch", "file": "no file"}, {"other": b"x"}, "file", "must be a file"),
        ({"purpose": "batch", "expires_after": "1"}, {"file": b"x"}, "expires_after", "unsupported parameter"),
    ],
)
def test_a_bad_form_is_refused_by_its_part(
    client: httpx.Client, data: dict[str, str], files: dict[str, bytes], param: str, said: str
) -> None:
    answer = client.post("/v1/files", data=data, files=files)
    assert answer.status_code == 400
    assert error(answer)["param"] == param
    assert said in error(answer)["message"]


@pytest.mark.parametrize("size", [FILE_BYTES + 1, FILE_BYTES * 4])
def test_a_file_over_the_limit_is_refused_and_not_kept(client: httpx.Client, size: int) -> None:
    """A little over: when it is stored, since the form around it has no exact length. Far over: unread."""
    answer = client.post("/v1/files", files={"file": b"x" * size}, data={"purpose": "batch"})
    assert (answer.status_code, error(answer)["code"]) == (413, "payload_too_large")
    assert str(FILE_BYTES) in error(answer)["message"]
    assert client.get("/v1/files").json()["data"] == []


def test_a_file_of_unknown_length_is_cut_off_at_the_limit(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(40):
            yield b"x" * (FILE_BYTES // 10)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/files", content=pieces(), headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (413, "payload_too_large")


# Training data


def finetune(client: httpx.Client, **changes: str) -> httpx.Response:
    return client.post("/v1/jobs", json={"kind": "finetune", "model": CHAT_MODEL} | changes)


def test_a_training_job_is_accepted_on_good_data(client: httpx.Client) -> None:
    answer = finetune(client, training_file=upload(client, LINE * 2), suffix="greeter")
    assert answer.status_code == 202
    assert (answer.json()["kind"], answer.json()["task"]) == ("finetune", "text-generation")


def test_broken_training_data_is_refused_by_its_lines(client: httpx.Client) -> None:
    file_id = upload(client, LINE + b"{broken\n" + LINE + b'{"prompt": "no completion"}\n')
    answer = finetune(client, training_file=file_id)
    found = error(answer)
    assert answer.status_code == 400
    assert (found["code"], found["param"]) == ("invalid_training_data", "training_file")
    assert "line 2: is not JSON" in found["message"]
    assert "line 4: `completion`" in found["message"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_an_empty_data_set_is_refused_with_an_example(client: httpx.Client) -> None:
    answer = finetune(client, training_file=upload(client, b"\n\n"))
    assert (answer.status_code, error(answer)["code"]) == (400, "invalid_training_data")
    assert '{"messages":' in error(answer)["message"]


def test_a_validation_file_is_checked_too(client: httpx.Client) -> None:
    answer = finetune(client, training_file=upload(client, LINE), validation_file=upload(client, b"[]\n"))
    assert (answer.status_code, error(answer)["param"]) == (400, "validation_file")


def test_a_file_of_another_purpose_is_refused(client: httpx.Client) -> None:
    answer = finetune(client, training_file=upload(client, LINE, purpose="batch"))
    assert (answer.status_code, error(answer)["param"]) == (400, "training_file")
    assert "'fine-tune'" in error(answer)["message"]


def test_an_unknown_training_file_is_named(client: httpx.Client) -> None:
    answer = finetune(client, training_file="file-" + "0" * 24)
    assert (answer.status_code, error(answer)["code"]) == (404, "file_not_found")
    assert error(answer)["param"] == "training_file"
