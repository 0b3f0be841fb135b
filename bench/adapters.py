"""What adapters cost a batch, in the engine and in PEFT: `python bench/adapters.py`.

- Decoding alone: 16 rows with 0, 1 and 8 adapters among them, and with one of each other method.
- More adapters than slots: 64 over 16 slots, asked for by Zipf's law, against all 64 in slots of their own.
- PEFT: the same 16 requests with 8 adapters, by `adapter_names` and group by group, each against its own base.
- One adapter: its bytes in the file, on the host and in a slot; the time to read it and to load it.

LoRA of rank 8 on q_proj and v_proj with random weights, saved by PEFT; the bank has the rank that a worker has by
default. All sides take turns in every round; medians count. Prints tables in Markdown and writes bench-adapters.json.
"""

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from bench.adapter_costs import measure_costs
from bench.adapter_folders import CONFIGS, RANK, VIRTUAL_TOKENS, save_adapters
from bench.adapter_peers import Peft
from bench.decoder import (
    DTYPE,
    MODEL,
    Request,
    engine_of,
    load_resident,
    pure_decode,
    run_together,
    text,
    to_sequence,
)
from bench.machine import describe
from bench.report import keep, show
from bench.rounds import Side, Work, median_rate, take_turns
from tandem.settings import WorkerSettings
from worker.engine.adapters.weights import AdapterWeights, read_adapter
from worker.resident_model import ResidentModel

FILE = Path("bench-adapters.json")
ROWS = 16
DISTINCT = 8
SLOTS = 16
MANY = 64
SLOT_TOKENS = 256
"""More than any sequence here has."""
PROMPT_WORDS = 32
OTHER_METHODS = tuple(method for method in CONFIGS if method != "LoRA")
NONE, ONE, MIXED = "no adapter", "1 LoRA adapter", f"{DISTINCT} LoRA adapters"
FEW_SLOTS, ALL_RESIDENT = f"{MANY} adapters over {SLOTS} slots", f"{MANY} adapters over {MANY} slots"
ENGINE, ENGINE_BASE = f"engine, {DISTINCT} adapters", "engine, no adapter"
NAMES, GROUPS, PEFT_BASE = "PEFT, `adapter_names`", "PEFT, group by group", "PEFT, no adapter"

Rates = dict[str, float]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much the whole run measures."""

    rounds: int
    steps: int
    """Of pure decoding in a round."""
    zipf_rounds: int
    zipf_requests: int
    new_tokens: int
    """Of a request, where whole requests are measured."""


FULL = Amount(rounds=5, steps=32, zipf_rounds=3, zipf_requests=96, new_tokens=24)
QUICK = Amount(rounds=1, steps=2, zipf_rounds=1, zipf_requests=6, new_tokens=3)


def requests(count: int, new_tokens: int, seed: object) -> list[Request]:
    """Prompts of one length; other words for each seed."""
    chance = random.Random(str(seed))
    return [Request(text(chance, PROMPT_WORDS), new_tokens) for _ in range(count)]


def read_all(folders: Many[Path], model: PreTrainedModel) -> list[AdapterWeights]:
    return [read_adapter(str(folder), folder, model) for folder in folders]


def sequences(resident: ResidentModel, asked: Many[Request], adapters: Many[AdapterWeights]) -> list[Any]:
    """Row i has adapter i, the last of them followed by the first again; none with no adapters."""
    chosen = [adapters[row % len(adapters)] if adapters else None for row in range(len(asked))]
    return [
        to_sequence(request, resident.tokenizer, adapter=adapter)
        for request, adapter in zip(asked, chosen, strict=True)
    ]


def decoding(amount: Amount, folders: Mapping[str, list[Path]]) -> Rates:
    """Output tokens a second of steps in which 16 rows decode, by what adapters are among them."""
    resident = load_resident(slot_tokens=SLOT_TOKENS)
    lora = read_all(folders["LoRA"][:DISTINCT], resident.model)
    mixes = {NONE: [], ONE: lora[:1], MIXED: lora}
    for method in OTHER_METHODS:
        mixes[f"1 {method} adapter"] = read_all(folders[method][:1], resident.model)

    def side(adapters: list[AdapterWeights]) -> Side:
        def run(number: int) -> Work:
            # Some tokens more than the steps: the first rows decode while the last ones read their prompts.
            asked = requests(ROWS, amount.steps + PROMPT_WORDS, ("decoding", number))
            return pure_decode(engine_of(resident), sequences(resident, asked, adapters), steps=amount.steps)

        return run

    sides = {name: side(adapters) for name, adapters in mixes.items()}
    # Once for nothing: tables are allocated when an adapter first needs them.
    take_turns(sides, 1)
    rates = {name: median_rate(works) for name, works in take_turns(sides, amount.rounds).items()}
    show(
        f"{ROWS} rows decode, {MODEL}, {str(DTYPE).removeprefix('torch.')}",
        ("adapters among the rows", "output tokens/s", "against none"),
        [(name, f"{rate:.0f}", f"{rate / rates[NONE]:.2f}") for name, rate in rates.items()],
    )
    return rates


def many_over_few(amount: Amount, folders: list[Path]) -> dict[str, Any]:
    """64 adapters, the k-th asked for 1/k as often as the first, with fewer slots and with enough."""
    residents = {
        FEW_SLOTS: load_resident(slot_tokens=SLOT_TOKENS, adapter_slots=SLOTS),
        ALL_RESIDENT: load_resident(slot_tokens=SLOT_TOKENS, adapter_slots=MANY),
    }

    def side(resident: ResidentModel) -> Side:
        adapters = read_all(folders, resident.model)
        # All in slots now, if there are as many.
        run_together(engine_of(resident), sequences(resident, requests(MANY, 2, "first"), adapters))

        def run(number: int) -> Work:
            asked = requests(amount.zipf_requests, amount.new_tokens, ("many", number))
            weights = [1 / place for place in range(1, MANY + 1)]
            chosen = random.Random(number).choices(adapters, weights, k=len(asked))
            return run_together(engine_of(resident), sequences(resident, asked, chosen))

        return run

    sides = {name: side(resident) for name, resident in residents.items()}
    before = engine_of(residents[FEW_SLOTS]).counts.adapter_loads
    rates = {name: median_rate(works) for name, works in take_turns(sides, amount.zipf_rounds).items()}
    loads = (engine_of(residents[FEW_SLOTS]).counts.adapter_loads - before) / amount.zipf_rounds
    show(
        f"{amount.zipf_requests} requests at once for {MANY} adapters by Zipf's law",
        ("", "output tokens/s", "against all resident"),
        [(name, f"{rate:.0f}", f"{rate / rates[ALL_RESIDENT]:.2f}") for name, rate in rates.items()],
    )
    print(f"\nWith {SLOTS} slots {loads:.0f} loads a round.")
    return {"rates": rates, "loads_a_round": loads}


def against_peft(amount: Amount, folders: list[Path]) -> Rates:
    """The same 16 requests from submission to the last token, each adapter in two rows."""
    peft = Peft(folders)
    resident = load_resident(slot_tokens=SLOT_TOKENS)
    adapters = read_all(folders, resident.model)

    def asked(number: int) -> list[Request]:
        return requests(ROWS, amount.new_tokens, ("peft", number))

    def in_engine(some: list[AdapterWeights]) -> Side:
        return lambda number: run_together(engine_of(resident), sequences(resident, asked(number), some))

    sides: dict[str, Side] = {
        ENGINE_BASE: in_engine([]),
        ENGINE: in_engine(adapters),
        PEFT_BASE: lambda number: peft.base(asked(number)),
        NAMES: lambda number: peft.adapter_names(asked(number)),
        GROUPS: lambda number: peft.group_by_group(asked(number)),
    }
    rates = {name: median_rate(works) for name, works in take_turns(sides, amount.zipf_rounds).items()}
    bases = {ENGINE_BASE: ENGINE_BASE, ENGINE: ENGINE_BASE}
    show(
        f"{ROWS} requests with {DISTINCT} adapters, {amount.new_tokens} tokens each, from submission to the end",
        ("", "output tokens/s", "time against its own base", "the engine against it"),
        [
            (
                name,
                f"{rate:.0f}",
                f"{rates[bases.get(name, PEFT_BASE)] / rate:.2f}",
                f"{rates[ENGINE] / rate:.2f}",
            )
            for name, rate in rates.items()
        ],
    )
    return rates


def costs(folders: Mapping[str, list[Path]], rank: int) -> dict[str, dict[str, float]]:
    measured = {method: measure_costs(some[0], slots=SLOTS, rank=rank) for method, some in folders.items()}
    show(
        f"One adapter of {MODEL}: LoRA and DoRA of rank {RANK} on q and v in a bank of rank {rank}; IA³ on k, v and "
        f"down; a prefix of {VIRTUAL_TOKENS} tokens (no slot: each sequence's keys and values begin with it)",
        ("method", "file, KB", "host, KB", "slot, KB", "read and check, ms", "load into a slot, ms"),
        [
            (
                method,
                *(f"{cost[name] / 1000:.0f}" for name in ("file_bytes", "host_bytes", "slot_bytes")),
                *(f"{cost[name]:.2f}" for name in ("read_ms", "load_ms")),
            )
            for method, cost in measured.items()
        ],
    )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short requests: shows that everything runs")
    quick = parser.parse_args().quick
    amount = QUICK if quick else FULL
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # PEFT reads a property of the model by its old name; nothing that is measured here is concerned.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    machine = describe(DTYPE)
    rank = WorkerSettings.read().adapter_rank
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = {method: MANY if method == "LoRA" else 1 for method in CONFIGS}
        folders = {method: save_adapters(method, Path(folder) / method, count) for method, count in counts.items()}
        figures: dict[str, Any] = {
            "costs": costs(folders, rank),
            "decoding": decoding(amount, folders),
            "many_over_few": many_over_few(amount, folders["LoRA"]),
            "against_peft": against_peft(amount, folders["LoRA"][:DISTINCT]),
        }
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s in all")
    keep(
        FILE,
        {"machine": machine, "seconds": seconds, "amount": asdict(amount), "bank_rank": rank, **figures},
        quick=quick,
    )


if __name__ == "__main__":
    main()
