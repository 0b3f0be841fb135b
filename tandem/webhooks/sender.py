"""One try to deliver a message: look up, judge the address, connect to exactly that one, post, read the status."""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from tandem.errors import InvalidRequest
from tandem.webhooks.addresses import Address, AddressRules
from tandem.webhooks.destination import Destination, checked_addresses, destination_of
from tandem.webhooks.outbox import Message
from tandem.webhooks.resolver import Resolver, SystemResolver
from tandem.webhooks.schedule import retry_after_seconds

CONNECT_SECONDS = 5.0
"""For the connection to one address; a host further away than that is down."""
STATUS_SECONDS = 13.0
"""From the look-up to the answer's status: a receiver should note the message and answer, and work afterwards."""
BODY_SECONDS = 2.0
"""For the answer's body, when the status has decided already."""
TOTAL_SECONDS = STATUS_SECONDS + BODY_SECONDS
"""The whole try, at most (Standard Webhooks suggests 15 to 30)."""
ANSWER_BYTES = 64 * 1024
"""So much of an answer's body is read, and thrown away: the status says all. Closing at once would look like an
error to a receiver that is still writing."""
REASON_CHARACTERS = 200
"""The job's record keeps the reason of the last failed try."""
USER_AGENT = "Tandem-Webhooks/1"
GONE = 410


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try went: the receiver's status, or the reason why there is none."""

    status: int | None
    reason: str
    retry_after: float | None = None
    """Seconds that the receiver asks to be left alone."""

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """The receiver wants no more messages."""
        return self.status == GONE


class Sender:
    """Posts signed messages to users' URLs without letting these reach what the rules forbid."""

    def __init__(
        self,
        rules: AddressRules,
        *,
        resolver: Resolver | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`trust` says whose certificates count: the public authorities by default, and SSL_CERT_FILE's."""
        self._rules = rules
        self._resolver = resolver or SystemResolver()
        # Made once: reading the authorities takes tens of milliseconds.
        self._trust = trust or httpx.create_ssl_context()

    def close(self) -> None:
        self._resolver.close()

    async def send(self, message: Message) -> Answer:
        """Make one try, for TOTAL_SECONDS at most. What goes wrong on the way is an answer, not an exception."""
        try:
            async with self._client() as client:
                async with asyncio.timeout(STATUS_SECONDS):
                    response = await self._response(client, message)
                await _read_some(response)
                return _answer_of(response)
        except InvalidRequest as error:
            return _failed(error.message)
        except httpx.ConnectTimeout:
            return _failed(f"no connection within {CONNECT_SECONDS:g} s")
        except (TimeoutError, httpx.TimeoutException):
            return _failed(f"no answer within {STATUS_SECONDS:g} s")
        except httpx.HTTPError as error:
            return _failed(f"{type(error).__name__}: {error}")
        except OSError as error:
            return _failed(f"the host cannot be looked up: {error}")

    async def _response(self, client: httpx.AsyncClient, message: Message) -> httpx.Response:
        """The answer's head, from the first of the host's addresses that can be connected to."""
        destination = destination_of(message.url, self._rules)
        # Looked up once: a second answer, given to the connection, could differ from the one that is judged here.
        found = await self._resolver.addresses(destination.host, destination.port)
        *others, last = checked_addresses(found, self._rules)
        for address in others:
            try:
                return await client.send(self._request(address, destination, message), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                # Nothing was sent; a host may be reachable by one of its two protocols only.
                continue
        return await client.send(self._request(last, destination, message), stream=True)

    def _client(self) -> httpx.AsyncClient:
        """A client for one try. A connection that was kept could serve another host of the same address, whose
        certificate nobody has checked."""
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=self._trust, trust_env=False),
            # A redirect would lead to an address that nobody has judged.
            follow_redirects=False,
            # No proxy and no netrc: a proxy would look the name up again.
            trust_env=False,
        )

    def _request(self, address: Address, destination: Destination, message: Message) -> httpx.Request:
        return httpx.Request(
            "POST",
            destination.url.copy_with(host=str(address)),
            content=message.body.encode(),
            headers=_headers(destination, message),
            extensions={
                # The certificate is checked for the host of the user's URL, not for the address in ours.
                "sni_hostname": destination.host,
                "timeout": httpx.Timeout(STATUS_SECONDS, connect=CONNECT_SECONDS).as_dict(),
            },
        )


def _headers(destination: Destination, message: Message) -> dict[str, str]:
    return {
        "Host": destination.url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        # No compression: a few bytes could then unfold to many.
        "Accept-Encoding": "identity",
        "Connection": "close",
        **message.signer.headers(message.id, datetime.now(UTC), message.body),
    }


def _answer_of(response: httpx.Response) -> Answer:
    wish = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
    return Answer(response.status_code, str(response.status_code), wish)


async def _read_some(response: httpx.Response) -> None:
    """Read and forget ANSWER_BYTES of the body, for BODY_SECONDS, and close the connection."""
    count = 0
    try:
        # The status stands, whatever becomes of the rest.
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in response.aiter_raw():
                    count += len(chunk)
                    if count >= ANSWER_BYTES:
                        return
    finally:
        await response.aclose()


def _failed(reason: str) -> Answer:
    return Answer(None, reason[:REASON_CHARACTERS])
