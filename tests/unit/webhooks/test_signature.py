"""Signatures, checked by the libraries that receivers use."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from tandem.errors import ConfigurationError
from tandem.webhooks.signature import Signer

BODY = json.dumps({"type": "job.succeeded", "data": {"id": "job_1", "metadata": {"who": "Zoë"}}}, ensure_ascii=False)
OTHER_SECRET = "whsec_" + base64.b64encode(b"x" * 24).decode()


def test_standard_webhooks_library_verifies_the_message(signer: Signer, secret: str) -> None:
    headers = signer.headers("msg_job_1", datetime.now(UTC), BODY)
    assert Webhook(secret).verify(BODY, headers)["data"]["metadata"] == {"who": "Zoë"}


def test_openai_library_verifies_and_unwraps_the_message(signer: Signer, secret: str) -> None:
    headers = signer.headers("msg_job_1", datetime.now(UTC), BODY)
    with OpenAI(api_key="unused", webhook_secret=secret) as client:
        event = client.webhooks.unwrap(BODY, headers)
    assert event.type == "job.succeeded"  # type: ignore[comparison-overlap]  # no event of OpenAI's own


@pytest.mark.parametrize("part", ["body", "id", "timestamp"])
def test_a_changed_message_is_found_out(signer: Signer, secret: str, part: str) -> None:
    now = datetime.now(UTC)
    headers, body = signer.headers("msg_job_1", now, BODY), BODY
    if part == "body":
        body = BODY.replace("job_1", "job_2")
    elif part == "id":
        headers["webhook-id"] = "msg_job_2"
    else:
        headers["webhook-timestamp"] = str(int(now.timestamp()) + 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


def test_another_secret_does_not_verify(signer: Signer) -> None:
    headers = signer.headers("msg_job_1", datetime.now(UTC), BODY)
    with OpenAI(api_key="unused") as client, pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(BODY, headers, secret=OTHER_SECRET)


def test_while_a_secret_is_replaced_both_verify(secret: str) -> None:
    headers = Signer.of_setting(f"{OTHER_SECRET}, {secret}").headers("msg_job_1", datetime.now(UTC), BODY)
    for either in (secret, OTHER_SECRET):
        assert Webhook(either).verify(BODY, headers)["type"] == "job.succeeded"
        with OpenAI(api_key="unused") as client:
            client.webhooks.verify_signature(BODY, headers, secret=either)


def test_the_time_is_the_same_instant_in_any_zone(signer: Signer) -> None:
    now = datetime.now(UTC)
    elsewhere = now.astimezone(timezone(timedelta(hours=9)))
    assert signer.headers("msg_1", now, BODY) == signer.headers("msg_1", elsewhere, BODY)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "secret 1 does not begin with whsec_"),
        ("c2VjcmV0", "secret 1 does not begin with whsec_"),
        ("whsec_not!base64", "secret 1 is not base64"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "secret 1 holds 23 bytes, not 24 to 64"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "secret 1 holds 65 bytes, not 24 to 64"),
        (OTHER_SECRET + ",", "secret 2 does not begin with whsec_"),
    ],
)
def test_a_bad_secret_stops_the_start_and_is_not_repeated(value: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refused:
        Signer.of_setting(value)
    assert refused.value.param == "TANDEM_WEBHOOK_SECRET"
    assert value.removeprefix("whsec_").strip(",") == "" or value.strip(",") not in refused.value.message
