"""Files that come in parts, through OpenAI's own client."""

import hashlib
from pathlib import Path

import httpx
import openai
import pytest

from tandem.settings import ApiSettings
from tests.integration.api.api_server import client_of, serving
from tests.integration.api.calls import error

PART_BYTES = 64 * 1024
CONTENT = bytes(range(256)) * 1024
ANNOUNCED = {"bytes": 6, "filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}


def begin(client: httpx.Client, **changes: object) -> str:
    answer = client.post("/v1/uploads", json=ANNOUNCED | changes)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def send(client: httpx.Client, upload: str, content: bytes) -> httpx.Response:
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": content})


def test_the_client_sends_a_file_in_parts(sdk: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "große.bin"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    upload = sdk.uploads.upload_file_chunked(
        file=path, mime_type="application/octet-stream", purpose="user_data", part_size=100_000, md5=md5
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(CONTENT), "große.bin")
    assert upload.file is not None
    assert sdk.files.retrieve(upload.file.id) == upload.file
    assert sdk.files.content(upload.file.id).read() == CONTENT


def test_an_upload_tells_its_state_and_the_life_of_its_file(sdk: openai.OpenAI) -> None:
    upload = sdk.uploads.create(
        bytes=6,
        filename="rows.jsonl",
        mime_type="text/jsonl",
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (upload.status, upload.file, upload.expires_at - upload.created_at) == ("pending", None, 3600)
    parts = [sdk.uploads.parts.create(upload.id, data=data) for data in (b"def", b"abc")]
    assert {(part.object, part.upload_id) for part in parts} == {("upload.part", upload.id)}
    done = sdk.uploads.complete(upload.id, part_ids=[parts[1].id, parts[0].id])
    assert done.file is not None
    assert sdk.files.content(done.file.id).read() == b"abcdef"
    assert done.file.expires_at == done.file.created_at + 7200
    with pytest.raises(openai.ConflictError) as refused:
        sdk.uploads.cancel(upload.id)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert sdk.uploads.cancel(sdk.uploads.create(**ANNOUNCED).id).status == "cancelled"  # type: ignore[arg-type]  # all the fields of a dict


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"bytes": 8 * 2**30 + 1}, "bytes", str(8 * 2**30)),
        ({"bytes": 0}, "bytes", "greater than or equal to 1"),
        ({"purpose": "batch_output"}, "purpose", "'fine-tune'"),
        ({"filename": ""}, "filename", "at least 1"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds", "3600"),
        ({"color": "red"}, "color", "unsupported parameter"),
    ],
)
def test_an_upload_that_cannot_be_is_refused_by_its_field(
    client: httpx.Client, changes: dict[str, object], param: str, said: str
) -> None:
    answer = client.post("/v1/uploads", json=ANNOUNCED | changes)
    assert (answer.status_code, error(answer)["param"]) == (400, param)
    assert said in error(answer)["message"]


def test_a_part_that_does_not_fit_is_refused(client: httpx.Client) -> None:
    upload = begin(client)
    too_much = send(client, upload, b"1234567")
    assert (too_much.status_code, error(too_much)["param"]) == (400, "data")
    no_file = client.post(f"/v1/uploads/{upload}/parts", data={"data": "text"}, files={"x": b""})
    assert (no_file.status_code, error(no_file)["param"]) == (400, "data")
    missing = send(client, "upload_none", b"1")
    assert (missing.status_code, error(missing)["code"]) == (404, "upload_not_found")


def test_a_part_is_never_larger_than_its_limit(api_settings: ApiSettings, valkey_url: str) -> None:
    settings = api_settings.model_copy(update={"part_bytes": PART_BYTES})
    with serving(settings) as url, client_of(url) as client:
        upload = begin(client, bytes=10 * PART_BYTES)
        for size in (PART_BYTES + 1, 3 * PART_BYTES):
            refused = send(client, upload, b"x" * size)
            assert (refused.status_code, error(refused)["code"]) == (413, "payload_too_large")
            assert str(PART_BYTES) in error(refused)["message"]
        assert send(client, upload, b"x" * PART_BYTES).status_code == 200


def test_another_checksum_makes_no_file(client: httpx.Client) -> None:
    upload = begin(client)
    part = send(client, upload, b"abcdef").json()["id"]
    for md5, said in (("0" * 32, "but that of the 6 bytes"), ("abc", "pattern")):
        answer = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [part], "md5": md5})
        assert (answer.status_code, error(answer)["param"]) == (400, "md5")
        assert said in error(answer)["message"]
    assert client.get("/v1/files").json()["data"] == []
