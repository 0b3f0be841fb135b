"""A program: the Celery side of a worker over the URL in TANDEM_REDIS_URL. It prints the lane of each ticket.

    python -m tests.integration.redis.ticket_worker <lane>

`ready` is printed when tickets are being taken. No model and no job store: a ticket is all that is looked at.
"""

import logging
import sys
import threading

from tandem.settings import Settings
from tests.integration.redis.broker import app_of
from worker.ticket_consumer import TicketConsumer


def main(lane: str) -> None:
    logging.basicConfig(level=logging.INFO)
    consumer = TicketConsumer(
        app_of(Settings.read().redis_url), hostname="ticket-worker@here", threads=2, on_ticket=_say
    )
    threading.Thread(target=_say_ready, args=(consumer,), daemon=True).start()
    consumer.run([lane])


def _say_ready(consumer: TicketConsumer) -> None:
    consumer.ready.wait()
    _say("ready")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
