"""Tickets: the Celery messages that wake workers. A ticket says that a lane has work, and nothing else.

Celery is the doorbell: lost, repeated, late and forged tickets are harmless, since `JobStore.claim` decides who takes
which job.
"""

import base64
import json
from typing import Any, Literal

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from tandem.redis_connection import celery_broker
from tandem.settings import Role, Settings
from tandem.ticket_transport import TRANSPORTS

TASK = "tandem.run"
TICKET_ID = "@ID@"
"""Where the number of a pushed ticket goes."""
SOCKET_SECONDS = 5
"""Publishing to, and reading from, a hung Redis fails after this time (the default is to block for good)."""


LaneKind = Literal[Role, "batch"]
"""Shards of batches have lanes of their own, which workers of the role `inference` listen to: each worker takes as
many as it runs at a time, and leaves the others to those that have none."""


def lane(kind: LaneKind, model: str) -> str:
    """The Celery queue that tickets of one kind of jobs and one model go to."""
    return f"tandem.{kind}.{model}"


def create_app(settings: Settings) -> Celery:
    """The Celery app of workers and of Flower.

    Early acknowledgement, no prefetch, no results, JSON alone: docs/decisions/0001 gives the reasons.
    """
    # By the schemes' names, since Flower reads the broker's kind from its URL.
    TRANSPORT_ALIASES.update(TRANSPORTS)
    broker = celery_broker(settings.redis_url)
    app = Celery("tandem", broker=broker.url)
    app.conf.update(
        broker_use_ssl=broker.use_ssl,
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_track_started=True,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        # Whoever reaches Redis could shut workers down by it, and it cannot stop a thread: cancel is ours.
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            **broker.transport_options,
            # Tickets are acknowledged when they are taken; kombu need not write down which are not.
            "ack_emulation": False,
            "socket_timeout": SOCKET_SECONDS,
            "socket_connect_timeout": SOCKET_SECONDS,
        },
    )
    return app


def ticket_message(lane: str) -> str:
    """A lane's ticket in the form in which kombu's Redis transport keeps it in a list (Celery's protocol 2).

    Built here and pushed by the script that submits, so that record and ticket cannot diverge. It names no job: the
    claim that it leads to takes the one whose turn it is then. Each pushed ticket has its number for `@ID@`.
    """
    body: list[Any] = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    message: dict[str, Any] = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASK,
            "id": TICKET_ID,
            "root_id": TICKET_ID,
            "parent_id": None,
            "group": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "tandem",
            "ignore_result": True,
            "retries": 0,
            "eta": None,
            "expires": None,
            "timelimit": [None, None],
        },
        "properties": {
            "correlation_id": TICKET_ID,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": lane},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": TICKET_ID,
        },
    }
    return json.dumps(message, separators=(",", ":"))
