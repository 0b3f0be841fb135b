"""Which delivery is made next: hosts take turns, so that one slow receiver holds up its own messages alone."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from tandem.webhooks.outbox import Message


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to try now."""

    key: str
    """Names the message in its outbox."""
    host: str
    message: Message
    tries: int
    """Failed ones so far."""
    leased_until: float
    """On the event loop's clock: until then no other process tries it."""


class HostQueues:
    """Deliveries that wait, by host, and how many of each host are being made. Decides; does nothing itself."""

    def __init__(self, *, running: int, running_per_host: int, waiting: int, waiting_per_host: int) -> None:
        self._running_limit = running
        self._running_per_host = running_per_host
        self._waiting_limit = waiting
        self._waiting_per_host = waiting_per_host
        # The order is whose turn it is: a host that has had one goes to the end.
        self._waiting: OrderedDict[str, deque[Delivery]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._count = 0

    @property
    def room(self) -> int:
        """How many more may be offered now."""
        return self._waiting_limit - self._count

    def offer(self, delivery: Delivery) -> bool:
        """Let a delivery wait for its turn; False if too many of its host wait already, or too many altogether."""
        line = self._waiting.get(delivery.host)
        if self.room <= 0 or (line is not None and len(line) >= self._waiting_per_host):
            return False
        if line is None:
            line = self._waiting[delivery.host] = deque()
        line.append(delivery)
        self._count += 1
        return True

    def next(self) -> Delivery | None:
        """The delivery to start now, which counts as running until `ended`; None if none may be."""
        if self._running.total() >= self._running_limit:
            return None
        host = next((host for host in self._waiting if self._running[host] < self._running_per_host), None)
        if host is None:
            return None
        line = self._waiting[host]
        delivery = line.popleft()
        self._count -= 1
        if line:
            self._waiting.move_to_end(host)
        else:
            del self._waiting[host]
        self._running[host] += 1
        return delivery

    def ended(self, delivery: Delivery) -> None:
        self._running[delivery.host] -= 1
        if not self._running[delivery.host]:
            del self._running[delivery.host]
