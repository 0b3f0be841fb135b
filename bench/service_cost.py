"""Time to the first token and between tokens by the number of clients, and what the service costs over the engine."""

import random
from dataclasses import dataclass
from typing import Any

from bench.clients import Load, ask_engine, ask_service, waits
from bench.decoder import Request, engine_of, load_resident, text
from bench.report import show
from bench.rounds import SEED, median_rate
from tandem import Tandem

PROMPT_WORDS = 64
ENGINE, SERVICE = "engine alone", "whole service"


@dataclass(frozen=True, slots=True)
class Amount:
    rounds: int
    requests: dict[int, int]
    """By the number of clients, what they ask for together in a round."""
    new_tokens: int


FULL = Amount(rounds=3, requests={1: 4, 4: 12, 16: 32, 64: 96}, new_tokens=24)
QUICK = Amount(rounds=1, requests={1: 1, 4: 4}, new_tokens=4)


def measure(client: Tandem, amount: Amount) -> dict[str, Any]:
    """By clients and side; `client` is one of a service whose model is not resident yet, maybe."""
    resident = load_resident()
    chance, order = random.Random(SEED), random.Random(SEED)

    def requests(count: int) -> list[Request]:
        return [Request(text(chance, PROMPT_WORDS), amount.new_tokens) for _ in range(count)]

    ask_service(client, requests(1), 1)
    ask_engine(engine_of(resident), resident.tokenizer, requests(1), 1)
    figures: dict[str, Any] = {}
    for clients, count in amount.requests.items():
        loads: dict[str, list[Load]] = {ENGINE: [], SERVICE: []}
        for _ in range(amount.rounds):
            for side in order.sample(list(loads), len(loads)):
                asked = requests(count)
                loads[side].append(
                    ask_service(client, asked, clients)
                    if side == SERVICE
                    else ask_engine(engine_of(resident), resident.tokenizer, asked, clients)
                )
        figures[str(clients)] = {
            side: {"tokens_per_second": median_rate([load.work for load in some]), **waits(some)}
            for side, some in loads.items()
        }
        print(f"  {clients} clients: {figures[str(clients)]}", flush=True)
    _table(figures, amount)
    return figures


def _table(figures: dict[str, Any], amount: Amount) -> None:
    show(
        f"Clients that stream one text after the other, {PROMPT_WORDS} words in, {amount.new_tokens} tokens out",
        (
            "clients",
            "side",
            "first token p50, ms",
            "p95, ms",
            "between tokens p50, ms",
            "p95, ms",
            "output tokens/s",
            "against the engine",
        ),
        [
            (
                clients,
                side,
                *(f"{value[name]:.0f}" for name in ("first_p50_ms", "first_p95_ms")),
                *(f"{value[name]:.1f}" for name in ("between_p50_ms", "between_p95_ms")),
                f"{value['tokens_per_second']:.0f}",
                f"{value['tokens_per_second'] / sides[ENGINE]['tokens_per_second']:.2f}",
            )
            for clients, sides in figures.items()
            for side, value in sides.items()
        ],
    )
