"""kombu's Redis transport, but that no message and no state of the server ends a worker.

In kombu 5.7 these raise inside Celery's event loop, which ends the process with its running jobs, and a restarted one
again:

- a list entry that is no JSON object: whoever can push to a lane's list could end every worker with it;
- a server above its memory limit, or without room on its disk: kombu itself writes for each message that it takes.

So what cannot be decoded is dropped, a server that takes no writes counts as one that is away (Celery reconnects
until it is back), and nothing is written for a ticket: no acknowledgement is kept (a lost ticket is rung again) and
no binding (tickets are pushed straight to their list).
"""

import logging
from queue import Empty
from typing import Any

import redis as client
from kombu.transport import redis

from tandem.outages import UNABLE

log = logging.getLogger(__name__)

FANOUT = "fanout"
"""The type of the exchange that carries workers' events; it is Redis' publish and subscribe."""


class _TakesTickets:
    """For both channels: they read, and write nothing."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # of the channel that it is mixed into
        except client.ResponseError as error:
            if str(error).startswith(UNABLE):
                raise client.ConnectionError(f"the server takes no writes now: {error}") from error
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("dropped a message that is no ticket: %r", error)
            raise Empty from error

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:  # noqa: ARG002
        if self.typeof(exchange).type == FANOUT:  # type: ignore[attr-defined]
            self._fanout_queues[queue] = (exchange, routing_key.replace("#", "*"))  # type: ignore[attr-defined]

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:  # noqa: ARG002
        # Every queue has the name of its routing key: no table of bindings is needed to find it.
        return [routing_key]


UNWRITABLE = (client.OutOfMemoryError, client.ReadOnlyError)


class TicketChannel(_TakesTickets, redis.Channel):
    pass


class TicketTransport(redis.Transport):
    Channel = TicketChannel
    connection_errors = (*redis.Transport.connection_errors, *UNWRITABLE)


class SentinelTicketChannel(_TakesTickets, redis.SentinelChannel):
    pass


class SentinelTicketTransport(redis.SentinelTransport):
    Channel = SentinelTicketChannel
    connection_errors = (*redis.SentinelTransport.connection_errors, *UNWRITABLE)


TRANSPORTS = {
    "redis": f"{__name__}:TicketTransport",
    "rediss": f"{__name__}:TicketTransport",
    "sentinel": f"{__name__}:SentinelTicketTransport",
}
"""The scheme of a broker's URL → the transport that serves it, as kombu names them."""
