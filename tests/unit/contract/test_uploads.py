"""Uploads over real stores: parts become a file once, whole, in the order asked for."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import Conflict, InvalidRequest, PayloadTooLarge, UnknownUpload
from tandem.services import Services
from tandem.settings import Settings
from tandem.uploads import KEPT_SECONDS, OPEN_SECONDS, StoredUpload

LIMIT = 1000


@pytest.fixture
def services(valkey_url: str, tmp_path: Path) -> Iterator[Services]:
    services = Services.connect(Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}"))
    yield services
    services.jobs.close()


def begun(services: Services, size: int = 6) -> StoredUpload:
    return services.uploads.create(filename="rows.jsonl", purpose="fine-tune", size=size, owner="default")


def add(services: Services, upload: StoredUpload, content: bytes) -> str:
    return services.uploads.add_part(upload.id, [content], limit=LIMIT).id


def test_parts_become_a_file_in_the_order_that_is_asked_for(services: Services) -> None:
    upload = begun(services)
    second, first = add(services, upload, b"def"), add(services, upload, b"abc")
    md5 = hashlib.md5(b"abcdef", usedforsecurity=False).hexdigest().upper()
    done = services.uploads.complete(upload.id, [first, second], md5=md5)
    assert (done.status, done.file) == ("completed", services.files.list()[0])
    assert done.file is not None
    assert b"".join(services.files.content(done.file)) == b"abcdef"
    assert (done.file.filename, done.file.purpose, done.file.bytes) == ("rows.jsonl", "fine-tune", 6)


def test_completing_again_with_the_same_parts_is_the_same_file(services: Services) -> None:
    upload = begun(services)
    parts = [add(services, upload, b"abc"), add(services, upload, b"def")]
    done = services.uploads.complete(upload.id, parts)
    assert services.uploads.complete(upload.id, parts) == done
    with pytest.raises(Conflict, match="is completed"):
        services.uploads.complete(upload.id, parts[::-1])
    assert len(services.files.list()) == 1


def test_of_many_that_complete_at_once_one_makes_the_file(services: Services) -> None:
    upload = begun(services)
    parts = [add(services, upload, b"abcdef")]
    start, made = threading.Barrier(4), []

    def complete() -> None:
        start.wait()
        made.append(services.uploads.complete(upload.id, parts).file)

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == services.files.list() * 4


def test_who_asked_first_and_comes_second_gets_the_same_file(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: of four who complete an upload at once, one was told that the upload has no such part.
    Cause: it had read the upload as pending, then another completed it and took its parts away.
    Fix: who is refused looks again whether the upload has become what was asked for.
    """
    upload = begun(services)
    parts = [add(services, upload, b"abcdef")]
    chosen, faster = services.uploads._chosen, []

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(services.uploads, "_chosen", chosen)
        faster.append(services.uploads.complete(upload.id, parts))
        return chosen(*arguments)

    monkeypatch.setattr(services.uploads, "_chosen", overtaken)
    assert [services.uploads.complete(upload.id, parts)] == faster


def test_parts_that_come_beside_each_other_are_all_kept_and_their_sum_is_bounded(services: Services) -> None:
    upload = begun(services, size=8)
    start, ids, refused = threading.Barrier(10), [], []

    def send() -> None:
        start.wait()
        try:
            ids.append(add(services, upload, b"x"))
        except InvalidRequest as error:
            refused.append(error.param)

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(set(ids)), refused) == (8, ["data", "data"])
    assert services.uploads.complete(upload.id, ids).status == "completed"


def test_a_wrong_size_order_or_checksum_is_refused_by_its_field(services: Services) -> None:
    upload = begun(services)
    first, second = add(services, upload, b"abc"), add(services, upload, b"def")
    for part_ids, md5, param, said in [
        ([first], None, "part_ids", "have 3 bytes, but the upload was announced with 6"),
        ([first, first], None, "part_ids", "twice"),
        ([first, "part_none"], None, "part_ids.1", "has no part 'part_none'"),
        ([first, second], "0" * 32, "md5", hashlib.md5(b"abcdef", usedforsecurity=False).hexdigest()),
    ]:
        with pytest.raises(InvalidRequest, match=said) as refused:
            services.uploads.complete(upload.id, part_ids, md5=md5)
        assert refused.value.param == param
    assert services.files.list() == []
    assert services.uploads.complete(upload.id, [first, second]).status == "completed"


def test_a_part_has_its_limit(services: Services) -> None:
    with pytest.raises(PayloadTooLarge, match="`data` is larger than the limit of 1000 bytes"):
        add(services, begun(services, size=5000), b"x" * 1001)


def test_a_cancelled_upload_takes_nothing_more(services: Services) -> None:
    upload = begun(services)
    part = add(services, upload, b"abcdef")
    assert services.uploads.cancel(upload.id).status == "cancelled"
    assert services.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(Conflict, match="is cancelled"):
        add(services, upload, b"abcdef")
    with pytest.raises(Conflict, match="is cancelled"):
        services.uploads.complete(upload.id, [part])


def test_a_completed_upload_cannot_be_cancelled(services: Services) -> None:
    upload = begun(services)
    services.uploads.complete(upload.id, [add(services, upload, b"abcdef")])
    with pytest.raises(Conflict, match="is completed"):
        services.uploads.cancel(upload.id)


def test_after_an_hour_an_upload_is_expired(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = begun(services)
    part = add(services, upload, b"abcdef")
    monkeypatch.setattr("tandem.uploads.time.time", lambda: float(upload.created_at + OPEN_SECONDS))
    assert services.uploads.get(upload.id).status == "expired"
    with pytest.raises(Conflict, match="is expired"):
        services.uploads.complete(upload.id, [part])


def test_no_key_of_an_upload_stays_for_ever(services: Services) -> None:
    upload = begun(services)
    other = begun(services)
    part = add(services, upload, b"abcdef")
    add(services, other, b"abcdef")
    services.uploads.complete(upload.id, [part])
    keys = list(services.jobs.redis.scan_iter("*upload*"))
    assert len(keys) == 3
    latest = time.time() + KEPT_SECONDS + 1
    assert all(0 < services.jobs.redis.expiretime(key) <= latest for key in keys)


def test_an_unknown_upload_is_named(services: Services) -> None:
    with pytest.raises(UnknownUpload, match="'upload_none'"):
        services.uploads.get("upload_none")
