"""What serving and training cost each other on one copy of the weights: `python bench/co_serving.py`.

16 streams with 8 adapters decode while a fine-tuning job trains with 512-token micro-batches, at several settings of
the dial (TANDEM_SERVING_SLOWDOWN), through the whole service; with `--in-process` also without it, which tells what
the turns alone do. Beside them what is usually done: stop serving to train, and two processes with two copies of the
weights. Prints tables in Markdown, writes bench-co-serving.json and draws docs/images/co-serving-dial.svg.
"""

import argparse
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers

from bench import serve_and_train
from bench.adapter_folders import save_adapters
from bench.chart import Line, draw
from bench.co_serving_service import Measured, memory_mb, quiet_environment, service, two_processes
from bench.decoder import DTYPE, MODEL, load_resident
from bench.machine import describe
from bench.report import keep, show
from bench.serve_and_train import Amount, Served, Streams, training
from worker.engine.adapters.weights import read_adapter
from worker.training.beside_pace import BesidePace
from worker.training.pace import LatencyTarget
from worker.training.turns import Turns

FILE = Path("bench-co-serving.json")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "co-serving-dial.svg"
ADAPTERS = 8
SLOT_TOKENS = 2048
"""More than any stream has here."""
USUAL_DIAL = 1.5
"""The setting whose amount is measured where there is no dial."""
STOPPED = "serving stopped to train"
TWO = "two processes, two copies"


@dataclass(frozen=True, slots=True)
class Result:
    """One way to do both, against each side alone in the same run."""

    p95: float
    """Between tokens, as a multiple of that without training."""
    worst_ms: float
    serving: float
    """Tokens a second, as a part of those without training."""
    training: float
    """Likewise, of those without serving."""
    memory_mb: float | None = None
    same_texts: bool | None = None

    @property
    def both(self) -> float:
        return self.serving + self.training


def compare(both: Served, alone: Served, training_share: float, **more: Any) -> Result:
    return Result(both.p95_ms() / alone.p95_ms(), both.worst_ms(), both.rate() / alone.rate(), training_share, **more)


def through_the_service(amount: Amount, folders: list[Path]) -> tuple[dict[str, Result], dict[str, float]]:
    results, alone = {}, {}
    trained_alone: float | None = None
    for dial in amount.dials:
        with service(folders, quiet_environment(dial)) as measured:
            if trained_alone is None:
                trained_alone = alone["training_tokens_per_second"] = _train_alone(measured, amount)
            results[_name(dial)] = _together(measured, amount.at(dial), trained_alone)
    assert trained_alone is not None, "there is a dial"
    with two_processes(folders) as measured:
        apart = alone["training_alone_in_its_own_worker"] = _train_alone(measured, amount)
        print(f"training with nothing served: {trained_alone / apart:.2f} of a worker that only trains", flush=True)
        results[TWO] = _together(measured, amount.at(USUAL_DIAL), trained_alone)
    return results, alone


def _train_alone(measured: Measured, amount: Amount) -> float:
    with measured.train(amount) as trained:
        started = time.perf_counter()
        trained.wait_for(amount.alone_steps)
        return trained.rate(amount, started, time.perf_counter())


def _together(measured: Measured, amount: Amount, trained_alone: float) -> Result:
    alone, _, _ = measured.serve(amount)
    with measured.train(amount) as trained:
        both, since, until = measured.serve(amount)
        memory = memory_mb(measured.pids)
        share = trained.rate(amount, since, until) / trained_alone
    result = compare(both, alone, share, memory_mb=memory)
    print(f"  {result}", flush=True)
    return result


def in_process(amount: Amount, folders: list[Path]) -> dict[str, Result]:
    resident = load_resident(slot_tokens=SLOT_TOKENS, kv_reuse="off")
    adapters = [read_adapter(str(folder), folder, resident.model) for folder in folders]
    serve_and_train.as_in_a_worker()
    with training(resident, Turns(), amount) as trained:
        started = time.perf_counter()
        trained.wait_for(amount.alone_steps)
        trained_alone = trained.rate(amount, started, time.perf_counter())
    results = {}
    for dial in amount.dials:
        turns = Turns(pace=BesidePace(LatencyTarget(dial)))
        alone, _, _ = Streams(resident, adapters, turns).decode(amount.at(dial))
        with training(resident, turns, amount) as trained:
            both, since, until = Streams(resident, adapters, turns).decode(amount.at(dial))
            share = trained.rate(amount, since, until) / trained_alone
        results[_name(dial)] = compare(both, alone, share, same_texts=both.same_texts(alone))
        print(f"  {results[_name(dial)]}", flush=True)
    return results


def _name(dial: float) -> str:
    return f"Tandem, dial {dial:g}"


def table(title: str, results: dict[str, Result]) -> None:
    rows = [
        (
            name,
            f"{result.p95:.2f}",
            f"{result.worst_ms:.0f}",
            f"{result.serving:.2f}",
            f"{result.training:.2f}",
            f"{result.both:.2f}",
            "" if result.memory_mb is None else f"{result.memory_mb:.0f}",
            "" if result.same_texts is None else "yes" if result.same_texts else "no",
        )
        for name, result in results.items()
    ]
    rows.append((STOPPED, "no tokens", "no tokens", "0.00", "1.00", "1.00", "", ""))  # by what it is
    show(
        title,
        ("", "p95 between tokens", "worst, ms", "serving", "training", "both", "memory, MB", "same texts"),
        rows,
    )


def picture(amount: Amount, results: dict[str, Result]) -> None:
    """The dial's curve: what each setting gives to both sides, in per cent."""

    def points(value: str) -> dict[int, float]:
        return {round(100 * dial): 100 * getattr(results[_name(dial)], value) for dial in amount.dials}

    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(
        draw(
            f"Serving while training, {MODEL}, 16 streams with {ADAPTERS} adapters",
            across="the dial: allowed 95th percentile between tokens, % of that without training",
            upward="%",
            lines=(
                Line("95th percentile between tokens", points("p95"), "#b45309", is_measured=True),
                Line("training, of its speed alone", points("training"), "#2563eb", is_measured=True),
                Line("allowed", {round(100 * dial): 100 * dial for dial in amount.dials}, "#64748b"),
            ),
        ),
        encoding="utf-8",
    )
    print(f"\ndrawn in {PICTURE.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of all: shows that everything runs")
    parser.add_argument("--in-process", action="store_true", help="also without the service")
    arguments = parser.parse_args()
    amount = serve_and_train.QUICK if arguments.quick else serve_and_train.FULL
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # PEFT reads a property of the model by its old name; nothing that is measured here is concerned.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    machine = describe(DTYPE)
    started = time.monotonic()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = save_adapters("LoRA", Path(folder), ADAPTERS)
        results, figures["alone"] = through_the_service(amount, folders)
        table("The whole service", results)
        figures["service"] = {name: asdict(result) for name, result in results.items()}
        if arguments.in_process:
            bare = in_process(amount, folders)
            table("One process without the service", bare)
            figures["in_process"] = {name: asdict(result) for name, result in bare.items()}
    if not arguments.quick:
        picture(amount, results)
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s in all")
    keep(FILE, {"machine": machine, "seconds": seconds, "amount": asdict(amount), **figures}, quick=arguments.quick)


if __name__ == "__main__":
    main()
