"""A storm: producers and workers at work while processes are killed and frozen, servers die, tickets are forged.

    python -m tests.chaos.storm --worker-kills 1000 --server-kills 100 --zombies 200 --seed N

prints what was done and what the audit counted; it fails with every contradiction. The deeds and their order follow
from the seed; what they meet is up to the operating system. The server writes each acknowledged change to its
append-only file before it answers (`appendfsync always`), since the promise of a job that is never lost rests on it.
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import redis

from tandem.tickets import ticket_message
from tests.chaos.ledger import Tally
from tests.chaos.nursery import LIGHT, Child, Nursery
from tests.chaos.stage import Stage
from tests.valkey_server import ValkeyServer

LANES = ("storm-a", "storm-b")
WORKERS = 4
PRODUCERS = 2
LEASE_SECONDS = 1.0
PRODUCER_PAUSE_SECONDS = 0.03
"""Between two jobs of a producer: together they keep about half of the workers' threads busy, so that most kills hit
running jobs, and the queue does not grow for ever."""
FROZEN_SECONDS = (1.2, 2.5)
"""A zombie's sleep: longer than its lease."""
THAWED = "a frozen worker came back after its lease"
"""The others died in their sleep, or were woken early because nobody else was left."""
PAUSE_SECONDS = (0.2, 0.8)
"""Between two deeds."""
DOWN_SECONDS = (0.0, 0.4)
"""Between the server's death and its restart."""
DRAIN_SECONDS = 120.0
NEVER = 1_000_000_000
"""Jobs of a producer that is stopped, and does not end by itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each deed is done."""

    seed: int
    worker_kills: int
    server_kills: int
    zombies: int
    producer_kills: int = 5
    ticket_harms: int = 30

    def deeds(self) -> list[str]:
        """All of them, in an order that follows from the seed."""
        deeds = [
            *["kill a worker"] * self.worker_kills,
            *["kill the server"] * self.server_kills,
            *["freeze a worker"] * self.zombies,
            *["kill a producer"] * self.producer_kills,
            *["harm tickets"] * self.ticket_harms,
        ]
        random.Random(self.seed).shuffle(deeds)
        return deeds


@dataclass(frozen=True, slots=True)
class Outcome:
    done: Mapping[str, int]
    """Deed → how often."""
    seconds: float
    """Until every job had ended."""
    tally: Tally

    def table(self) -> str:
        """For docs/benchmarks.md."""
        counts = asdict(self.tally)
        ended = {f"ended: {state}": count for state, count in counts.pop("ended").items()}
        rows = {**self.done, **counts, **ended, "seconds": round(self.seconds)}
        return "\n".join(
            ["| what | count |", "| --- | --- |", *(f"| {name} | {count} |" for name, count in rows.items())]
        )


class Storm:
    def __init__(self, plan: Plan, stage: Stage, server: ValkeyServer) -> None:
        self._plan = plan
        self._stage = stage
        self._server = server
        self._chance = random.Random(plan.seed + 1)
        self._workers: list[Child] = []
        self._producers: dict[str, Child] = {}
        self._frozen: list[tuple[float, Child]] = []
        """When to thaw whom, on the monotonic clock."""
        self._done: Counter[str] = Counter()

    def run(self) -> Outcome:
        """Every deed of the plan, then calm, then the audit."""
        started = time.monotonic()
        self._workers = [self._stage.worker() for _ in range(WORKERS)]
        for number in range(PRODUCERS):
            self._start_producer(f"producer-{number}")
        deeds: dict[str, Callable[[], None]] = {
            "kill a worker": self._kill_worker,
            "kill the server": self._kill_server,
            "freeze a worker": self._freeze_worker,
            "kill a producer": self._kill_producer,
            "harm tickets": self._harm_tickets,
        }
        for deed in self._plan.deeds():
            self._pause(self._chance.uniform(*PAUSE_SECONDS))
            deeds[deed]()
            self._done[deed] += 1
        self._calm_down()
        return Outcome(self._done, time.monotonic() - started, self._stage.audit())

    def _pause(self, seconds: float) -> None:
        """Let the service work, and thaw whoever is due meanwhile."""
        end = time.monotonic() + seconds
        for when, worker in sorted(self._frozen, key=lambda entry: entry[0]):
            if when > end:
                break
            _sleep_until(when)
            worker.signal(signal.SIGCONT)
            self._frozen.remove((when, worker))
            self._done[THAWED] += 1
        _sleep_until(end)

    def _kill_worker(self) -> None:
        """A frozen one dies as well as one that runs; another takes its place, as under a supervisor."""
        place = self._chance.randrange(WORKERS)
        victim = self._workers[place]
        self._frozen = [(when, worker) for when, worker in self._frozen if worker is not victim]
        victim.kill()
        assert victim.code == -signal.SIGKILL, f"the worker had ended by itself\n{self._stage.logs()}"
        self._workers[place] = self._stage.worker()

    def _freeze_worker(self) -> None:
        """Never the last one that runs; if there is no other, one thaws first."""
        frozen = [worker for _, worker in self._frozen]
        if len(frozen) >= WORKERS - 1:
            _, thawed = self._frozen.pop(0)
            thawed.signal(signal.SIGCONT)
            frozen.remove(thawed)
        victim = self._chance.choice([worker for worker in self._workers if worker not in frozen])
        victim.signal(signal.SIGSTOP)
        self._frozen.append((time.monotonic() + self._chance.uniform(*FROZEN_SECONDS), victim))

    def _kill_server(self) -> None:
        self._server.kill()
        self._pause(self._chance.uniform(*DOWN_SECONDS))
        self._server.restart()

    def _start_producer(self, name: str) -> None:
        self._producers[name] = self._stage.producer(
            name, jobs=NEVER, seed=self._plan.seed, pause_seconds=PRODUCER_PAUSE_SECONDS
        )

    def _kill_producer(self) -> None:
        name = self._chance.choice(sorted(self._producers))
        self._producers[name].kill()
        self._start_producer(name)

    def _harm_tickets(self) -> None:
        lane = self._chance.choice(LANES)
        self._chance.choice((lose_tickets, repeat_tickets, forge_ticket, push_nonsense))(self._stage.jobs.redis, lane)

    def _calm_down(self) -> None:
        for producer in self._producers.values():
            producer.signal(signal.SIGTERM)
            producer.wait()
        for _, worker in self._frozen:
            worker.signal(signal.SIGCONT)
        self._stage.wait_ended(DRAIN_SECONDS)
        for worker in self._workers:
            assert worker.is_alive(), f"a worker has ended by itself\n{self._stage.logs()}"
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0


def lose_tickets(server: redis.Redis, lane: str) -> None:
    server.delete(lane)


def repeat_tickets(server: redis.Redis, lane: str) -> None:
    for ticket in server.lrange(lane, 0, -1):
        server.rpush(lane, ticket)


def forge_ticket(server: redis.Redis, lane: str) -> None:
    server.rpush(lane, ticket_message("a lane that never had a job").replace("@ID@", "forged"))


def push_nonsense(server: redis.Redis, lane: str) -> None:
    server.rpush(lane, "ring ring")


def _sleep_until(when: float) -> None:
    """The storm's own clock: nothing else says when its next deed is due."""
    threading.Event().wait(max(when - time.monotonic(), 0.0))


def weather(plan: Plan, nursery: Nursery, folder: Path) -> Outcome:
    """One storm over a server of its own."""
    with ValkeyServer() as server:
        with redis.Redis.from_url(server.url) as client:
            # Rewritten, so that it holds after a restart too.
            client.config_set("appendfsync", "always")
            client.config_rewrite()
        with Stage(nursery, server.url, folder, lanes=LANES, lease_seconds=LEASE_SECONDS) as stage:
            return Storm(plan, stage, server).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--worker-kills", type=int, default=1000)
    parser.add_argument("--server-kills", type=int, default=100)
    parser.add_argument("--zombies", type=int, default=200)
    parser.add_argument("--producer-kills", type=int, default=50)
    parser.add_argument("--ticket-harms", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    plan = Plan(**vars(parser.parse_args()))
    sys.stdout.write(f"seed {plan.seed}\n")
    with tempfile.TemporaryDirectory(prefix="tandem-storm-") as folder, Nursery(*LIGHT) as nursery:
        sys.stdout.write(weather(plan, nursery, Path(folder)).table() + "\n")


if __name__ == "__main__":
    main()
