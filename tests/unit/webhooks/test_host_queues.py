"""Whose turn it is."""

from itertools import chain, repeat

from tandem.webhooks.host_queues import Delivery, HostQueues
from tandem.webhooks.outbox import Message
from tandem.webhooks.signature import Signer


def delivery(host: str, number: int = 0) -> Delivery:
    message = Message(f"msg_{number}", f"https://{host}/", "{}", Signer([]))
    return Delivery(f"job_{host}_{number}", host, message, tries=0, leased_until=0.0)


def queues(
    *, running: int = 4, running_per_host: int = 2, waiting: int = 10, waiting_per_host: int = 5
) -> HostQueues:
    return HostQueues(
        running=running, running_per_host=running_per_host, waiting=waiting, waiting_per_host=waiting_per_host
    )


def started(lines: HostQueues) -> list[Delivery]:
    """All that may be started now."""
    found = []
    while (one := lines.next()) is not None:
        found.append(one)
    return found


def test_hosts_take_turns_and_each_ones_messages_keep_their_order() -> None:
    lines = queues()
    for host, number in chain(zip(repeat("a"), range(3)), zip(repeat("b"), range(2))):
        assert lines.offer(delivery(host, number))
    assert [one.key for one in started(lines)] == ["job_a_0", "job_b_0", "job_a_1", "job_b_1"]


def test_a_host_has_a_share_of_what_runs_and_no_more() -> None:
    lines = queues()
    for number in range(3):
        lines.offer(delivery("a", number))
    assert len(started(lines)) == 2
    lines.offer(delivery("b"))
    assert [one.host for one in started(lines)] == ["b"]


def test_one_that_ends_makes_room_for_the_next() -> None:
    lines = queues()
    for number in range(3):
        lines.offer(delivery("a", number))
    first, _ = started(lines)
    lines.ended(first)
    assert [one.key for one in started(lines)] == ["job_a_2"]


def test_no_more_run_than_the_limit() -> None:
    lines = queues(running=3)
    for host in "abcde":
        lines.offer(delivery(host))
    assert len(started(lines)) == 3


def test_a_full_line_refuses_its_host_alone() -> None:
    lines = queues(waiting_per_host=2)
    assert [lines.offer(delivery("a", number)) for number in range(3)] == [True, True, False]
    assert lines.offer(delivery("b"))


def test_room_is_what_may_still_be_offered() -> None:
    lines = queues(waiting=2)
    assert lines.room == 2
    assert [lines.offer(delivery(host)) for host in "abc"] == [True, True, False]
    assert lines.room == 0
    started(lines)
    assert lines.room == 2
