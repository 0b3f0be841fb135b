"""Signs messages as Standard Webhooks 1.0 says, so that its libraries, and the OpenAI SDK's, verify them."""

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Self

from standardwebhooks import Webhook

from tandem.errors import ConfigurationError

SETTING = "TANDEM_WEBHOOK_SECRET"
PREFIX = "whsec_"
MIN_KEY_BYTES = 24
MAX_KEY_BYTES = 64
"""The specification's limits for a symmetric key."""


class Signer:
    """Holds the secrets and makes the headers of a message."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [Webhook(secret) for secret in secrets]

    @classmethod
    def of_setting(cls, value: str) -> Self:
        """A signer with the secrets of the setting: `whsec_<base64>`, several separated by commas.

        Raises ConfigurationError naming TANDEM_WEBHOOK_SECRET; its text does not repeat a secret.
        """
        secrets = [part.strip() for part in value.split(",")]
        for place, secret in enumerate(secrets, start=1):
            _check(secret, place)
        return cls(secrets)

    def headers(self, message_id: str, at: datetime, body: str) -> dict[str, str]:
        """The three headers of one try. `at` is when it is made; `body` is sent as UTF-8, unchanged.

        Every secret signs: while one is being replaced, receivers may hold either.
        """
        at = at.astimezone(UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(key.sign(message_id, at, body) for key in self._keys),
        }


def _check(secret: str, place: int) -> None:
    problem = None
    if not secret.startswith(PREFIX):
        problem = f"does not begin with {PREFIX}"
    else:
        try:
            size = len(base64.b64decode(secret.removeprefix(PREFIX), validate=True))
        except binascii.Error:
            problem = f"is not base64 after {PREFIX}"
        else:
            if not MIN_KEY_BYTES <= size <= MAX_KEY_BYTES:
                problem = f"holds {size} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}"
    if problem:
        raise ConfigurationError(
            f"{SETTING}: secret {place} {problem}; make one with "
            f"`python -c \"import base64, secrets; print('{PREFIX}' + "
            'base64.b64encode(secrets.token_bytes(32)).decode())"`',
            param=SETTING,
        )
