"""Files: upload, list, read, delete; and what training data must be."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tandem.services import Services
from tandem.settings import ApiSettings
from tests.integration.api.api_server import FILE_BYTES, client_of, serving
from tests.integration.api.calls import error
from tests.integration.api.memory import grows_less_than
from tests.integration.api.stand_in_worker import CHAT_MODEL

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = json.dumps(ROW).encode() + b"\n"


def upload(client: httpx.Client, content: bytes, *, purpose: str = "fine-tune", name: str = "rows.jsonl") -> str:
    answer = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def expiry(seconds: int, anchor: str = "created_at") -> dict[str, str]:
    """As OpenAI's clients put it into a form."""
    return {"expires_after[anchor]": anchor, "expires_after[seconds]": str(seconds)}


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
        ({"purpose": "poetry"}, {"file": b"x"}, "purpose", "'fine-tune'"),
        ({"purpose": "batch_output"}, {"file": b"x"}, "purpose", "'fine-tune'"),
        ({}, {"file": b"x"}, "purpose", "missing"),
        ({"purpose": "batch"}, {"other": b"x"}, "file", "missing"),
        ({"purpose": "batch", "file": "no file"}, {"other": b"x"}, "file", "must be a file"),
        ({"purpose": "batch", "color": "red"}, {"file": b"x"}, "color", "unsupported parameter"),
        ({"purpose": "batch", "expires_after": "{"}, {"file": b"x"}, "expires_after", "nor JSON"),
        ({"purpose": "batch"} | expiry(3599), {"file": b"x"}, "expires_after.seconds", "3600"),
        ({"purpose": "batch"} | expiry(2_592_001), {"file": b"x"}, "expires_after.seconds", "2592000"),
        ({"purpose": "batch"} | expiry(3600, "now"), {"file": b"x"}, "expires_after.anchor", "created_at"),
        (
            {"purpose": "batch", "expires_after[days]": "1"} | expiry(3600),
            {"file": b"x"},
            "expires_after.days",
            "unsupported parameter",
        ),
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


# The content


@pytest.mark.parametrize(
    ("asked", "status", "content", "place"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_part_of_the_content_comes_by_its_range(
    client: httpx.Client, asked: str, status: int, content: bytes, place: str | None
) -> None:
    file_id = upload(client, b"0123456789")
    answer = client.get(f"/v1/files/{file_id}/content", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)
    assert (answer.headers.get("content-range"), answer.headers["accept-ranges"]) == (place, "bytes")
    assert answer.headers["content-length"] == str(len(content))


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_size(client: httpx.Client, asked: str) -> None:
    file_id = upload(client, b"0123456789")
    answer = client.get(f"/v1/files/{file_id}/content", headers={"Range": asked})
    assert (answer.status_code, error(answer)["code"]) == (416, "range_not_satisfiable")
    assert "10 bytes" in error(answer)["message"]


def test_who_has_the_content_is_not_sent_it_again(client: httpx.Client) -> None:
    path = f"/v1/files/{upload(client, LINE)}/content"
    tag = client.get(path).headers["etag"]
    again = client.get(path, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == LINE
    part = client.get(path, headers={"If-Range": tag, "Range": "bytes=0-1"})
    assert (part.status_code, part.content) == (206, LINE[:2])
    assert client.get(path, headers={"If-Range": '"other"', "Range": "bytes=0-1"}).content == LINE


# Expiry


def test_a_batchs_input_expires_after_30_days_and_others_never(client: httpx.Client) -> None:
    def kept_seconds(**data: str) -> int | None:
        file = client.post("/v1/files", files={"file": b"x"}, data=data).json()
        return None if file["expires_at"] is None else file["expires_at"] - file["created_at"]

    assert kept_seconds(purpose="batch") == 30 * 86_400
    assert kept_seconds(purpose="fine-tune") is None
    assert kept_seconds(purpose="batch", **expiry(7200)) == 7200
    assert kept_seconds(purpose="user_data", expires_after='{"anchor": "created_at", "seconds": 3600}') == 3600


def test_an_expired_file_is_gone_and_so_is_its_place_in_the_list(client: httpx.Client, services: Services) -> None:
    kept = upload(client, LINE)
    short = services.files.create([LINE], filename="f", purpose="batch_output", owner="o", limit=100, expires_after=1)
    deadline = time.monotonic() + 30
    while (answer := client.get(f"/v1/files/{short.id}")).status_code == 200:
        assert time.monotonic() < deadline, "the file did not expire"
    assert (answer.status_code, error(answer)["code"]) == (404, "file_not_found")
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [kept]
    assert (services.files.forget_expired(), services.files.forget_expired()) == (1, 0)
    assert list(services.files.artifact_references()) == [services.files.get(kept).digest]


# Memory


def test_a_large_file_is_never_in_memory(api_settings: ApiSettings, valkey_url: str) -> None:
    """Neither on its way in nor on its way out: this process, in which the server runs, grows by a fraction of it."""
    piece, pieces = b"x" * 2**20, 96

    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(pieces):
            yield piece
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    settings = api_settings.model_copy(update={"file_bytes": 128 * 2**20})
    with serving(settings) as url, client_of(url, timeout=60) as client, grows_less_than(48 * 2**20):
        file = client.post("/v1/files", content=form(), headers=headers).json()
        assert file["bytes"] == pieces * len(piece)
        with client.stream("GET", f"/v1/files/{file['id']}/content") as answer:
            assert sum(len(chunk) for chunk in answer.iter_bytes()) == file["bytes"]
        client.delete(f"/v1/files/{file['id']}")


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
