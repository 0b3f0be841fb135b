"""Requests to the service: the key, the retries, and the service's errors as exceptions of `tandem.errors`."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from tandem.client.endpoint import Endpoint
from tandem.errors import (
    AuthenticationFailed,
    InvalidRequest,
    NotFound,
    QueueFull,
    QueueUnavailable,
    ServiceUnreachable,
    TandemError,
)

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""A host that takes longer to accept a connection counts as unreachable."""
RETRIES = 5
"""Further tries of one request. With the pauses below they span about 8 seconds: a service that restarts is back."""
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 8.0
"""Pauses double from the first to the longest, unless the service asks for a pause by `Retry-After`."""
NOTICED_SECONDS = 2.0
"""Whoever is made to wait longer is told why; without a logging configuration, Python writes it to standard error."""
LONGEST_RETRY_AFTER_SECONDS = 30.0
"""A service that asks for more is not waited for: the caller gets its error."""
REFUSED = frozenset({429, 503})
"""Statuses by which a service says that it did nothing with the request."""
IN_DOUBT = frozenset({502, 504})
"""Statuses of a proxy that does not know whether the request was handled. The service's own 504 says so."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def error_of(payload: Mapping[str, Any], *, status: int | None = None) -> TandemError:
    """The exception that an error object of the API, or a job's recorded failure, stands for.

    The class is found by `code`. A code that this version does not know gets the nearest class by HTTP status, and
    stands in the message.
    """
    code, message = str(payload.get("code") or ""), str(payload.get("message") or "")
    known = _classes().get(code)
    if known is not None:
        return known(message or None, param=payload.get("param"))
    fallback: type[TandemError] = TandemError
    if status in (401, 403):
        fallback = AuthenticationFailed
    elif status == 404:
        fallback = NotFound
    elif status is not None and 400 <= status < 500:
        fallback = InvalidRequest
    elif status in REFUSED:
        fallback = QueueUnavailable
    return fallback(f"{message} ({code})" if code else message or None, param=payload.get("param"))


def _classes() -> dict[str, type[TandemError]]:
    found: dict[str, type[TandemError]] = {}
    waiting: list[type[TandemError]] = [TandemError]
    while waiting:
        error = waiting.pop()
        found[error.code] = error
        waiting.extend(error.__subclasses__())
    return found


class Transport:
    """One connection pool to one service. Thread-safe, as httpx's client is."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self._http = httpx.Client(
            base_url=f"{endpoint.url}/v1",
            headers={"Authorization": f"Bearer {endpoint.api_key}"},
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            # A proxy from the environment cannot reach this machine's own loopback.
            trust_env=urlsplit(endpoint.url).hostname not in LOOPBACK,
        )

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> httpx.Response:
        """Send a request, again if that helps, and return its good answer.

        A request that is not `repeatable` is sent again only if the service certainly did nothing with it: the
        connection was refused, or the answer says so (429, 503). `options` are httpx's own.

        Raises the error that the service names, or ServiceUnreachable.
        """
        for pause in pauses(RETRIES):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                never_sent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                if pause is None or not (repeatable or never_sent):
                    raise self._unreachable(error) from error
            else:
                wait = self._again_after(response, pause, repeatable=repeatable)
                if wait is None:
                    return response
                pause = wait  # the service's own wish takes the place of ours
            time.sleep(pause)
        raise AssertionError("the last pause is None: the loop returns or raises")

    @contextmanager
    def stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Open an answer that is read piece by piece; nothing is retried here.

        Raises the error that the service names, or ServiceUnreachable for a connection that fails or falls silent,
        also while the caller reads.
        """
        try:
            with self._http.stream("GET", path, **options) as response:
                if response.is_error:
                    response.read()
                    raise _error_in(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _again_after(self, response: httpx.Response, pause: float | None, *, repeatable: bool) -> float | None:
        """Seconds to wait before the request is sent again; None for a good answer. Raises the answer's error."""
        if not response.is_error:
            return None
        in_doubt = response.status_code in IN_DOUBT and response.headers.get("x-should-retry") != "false"
        again = response.status_code in REFUSED or (repeatable and in_doubt)
        asked = _retry_after(response)
        if pause is None or not again or (asked or 0.0) > LONGEST_RETRY_AFTER_SECONDS:
            raise _error_in(response)
        if asked is not None and asked >= NOTICED_SECONDS:
            log.warning("%s; trying again in %.0f s", _error_in(response).message, asked)
        return pause if asked is None else asked

    def _unreachable(self, error: httpx.TransportError) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"{self.endpoint.url} does not answer ({str(error) or type(error).__name__}); "
            "is the service running (`tandem up`), and is TANDEM_URL its address?"
        )


def pauses(count: int) -> Iterator[float | None]:
    """Seconds to wait after each failed try, doubling; None after the last."""
    for number in range(count):
        yield min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
    yield None


def _retry_after(response: httpx.Response) -> float | None:
    """The pause that the service asks for, in seconds; a date there (HTTP allows one) is not read."""
    try:
        return max(float(response.headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):
        return None


def _error_in(response: httpx.Response) -> TandemError:
    try:
        payload = response.json()["error"]
        error = error_of(payload, status=response.status_code)
        if isinstance(error, QueueFull):
            error.retry_after = _retry_after(response) or error.retry_after
        return error
    except (ValueError, KeyError, TypeError, AttributeError):
        # Not one of ours: a proxy, or something else that listens at this address.
        message = f"HTTP {response.status_code} from {response.request.url}: {response.text[:200]}"
        return error_of({"message": message}, status=response.status_code)
