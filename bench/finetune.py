"""What a fine-tuning job is worth and how fast it is, against what it replaces: `python bench/finetune.py`.

Quality: SmolLM2-135M learns the answers of chatterbot-corpus, and is judged by its loss on questions that it never
saw; MiniLM learns Reuters R8 with its published split, and is judged by its accuracy on the test articles. Tandem's
training and transformers' Trainer with PEFT follow the same recipe, and transformers and PEFT judge both adapters.
Speed: tokens a second of a training that has the device alone, against that Trainer and a bare loop with PEFT on the
same micro-batches, all sides in turn; and with packing. Prints tables in Markdown and writes bench-finetune.json.
"""

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.finetune_judge import accuracy, held_out_loss
from bench.finetune_recipes import CHAT, R8, chat_rows, r8_rows
from bench.finetune_sides import Sides
from bench.machine import describe
from bench.report import keep, show
from bench.rounds import Work, median_rate, take_turns
from bench.timing import timed
from tandem.specs import TrainingRow

FILE = Path("bench-finetune.json")
TANDEM, TRAINER, LOOP = "Tandem", "Trainer + PEFT", "plain loop + PEFT"
PACKED = "Tandem, packing"
PACKING = {"packing": True, "batch_size": 2, "max_tokens": 192}
"""About as many tokens as a micro-batch of CHAT's rows has. Four rows fill 192 tokens to 93 %, and a longer pack
costs more, since attention goes over all of it and masks the other rows."""
CHAT_ROWS = 400
"""Drawn from chatterbot-corpus to be learned: a minute's work for two cores in float32."""
STEPS_A_ROUND = 12
"""Of each side without packing."""


@dataclass(frozen=True, slots=True)
class Amount:
    rows: int | None
    """Of each part of a data set; None for what the figures are taken on."""
    rounds: int
    """Of the speed."""


FULL = Amount(rows=None, rounds=3)
QUICK = Amount(rows=16, rounds=1)


def chat_quality(amount: Amount) -> dict[str, Any]:
    """Loss on the held-out questions' answers, in nats a token."""
    rows = random.Random("rows").sample(chat_rows("training"), amount.rows or CHAT_ROWS)
    held_out = chat_rows("held_out")[: amount.rows]
    sides = Sides(replace(CHAT, dtype=torch.float32), rows)  # in bfloat16, rounding would part the sides
    examples = sides.encoded(held_out)
    before = held_out_loss(sides, examples, None)
    after, seconds = _both(sides, rows, lambda folder: held_out_loss(sides, examples, folder))
    show(
        f"SmolLM2-135M + LoRA, chatterbot-corpus: {len(rows)} rows, {len(held_out)} held out",
        ("", "held-out loss before", "after", "seconds"),
        [(side, f"{before:.4f}", f"{after[side]:.4f}", f"{seconds[side]:.0f}") for side in after],
    )
    return {"before": before, "after": after, "seconds": seconds, "rows": len(rows), "held_out": len(held_out)}


def r8_quality(amount: Amount) -> dict[str, Any]:
    """Accuracy on the test split, whose articles are cut as those that were learned."""
    rows = r8_rows("train")[: amount.rows]
    topics = {row.label for row in rows}
    test = [row for row in r8_rows("test") if row.label in topics][: amount.rows]
    sides = Sides(R8, rows)
    examples = sides.encoded(test)
    right, seconds = _both(sides, rows, lambda folder: accuracy(sides, examples, folder))
    show(
        f"MiniLM + LoRA and a head, Reuters R8: {len(rows)} articles, {len(test)} of the test split",
        ("", "accuracy", "seconds"),
        [(side, f"{right[side]:.4f}", f"{seconds[side]:.0f}") for side in right],
    )
    return {"accuracy": right, "seconds": seconds, "rows": len(rows), "test": len(test)}


def _both(
    sides: Sides, rows: Sequence[TrainingRow], judge: Callable[[Path], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The judgement of each side's adapter, and the seconds that its whole training took."""
    judged, seconds = {}, {}
    for name, side in ((TANDEM, sides.tandem), (TRAINER, sides.trainer)):
        with tempfile.TemporaryDirectory() as folder:
            seconds[name] = timed(partial(side, rows, Path(folder)))
            judged[name] = judge(Path(folder))
            print(f"  {name}: {judged[name]:.4f} after {seconds[name]:.0f} s", flush=True)
    return judged, seconds


def speed(amount: Amount) -> dict[str, Any]:
    """Real tokens a second of each side: its steps but the first, whose rows are others in each round."""
    rows = chat_rows("training")
    sides = Sides(CHAT, rows)
    chance = random.Random("rows")
    samples = [chance.sample(rows, STEPS_A_ROUND * CHAT.hyperparameters.batch_size) for _ in range(amount.rounds)]

    def tandem(number: int, **changes: Any) -> Work:
        with tempfile.TemporaryDirectory() as folder:
            return sides.tandem(samples[number], Path(folder), **changes)

    def trainer(number: int) -> Work:
        with tempfile.TemporaryDirectory() as folder:
            return sides.trainer(samples[number], Path(folder))

    works = take_turns(
        {
            LOOP: lambda number: sides.loop(samples[number]),
            TRAINER: trainer,
            TANDEM: tandem,
            PACKED: lambda number: tandem(number, **PACKING),
        },
        amount.rounds,
    )
    rates = {name: median_rate(done) for name, done in works.items()}
    show(
        f"SmolLM2-135M + LoRA alone on the device, {sides.recipe.dtype}",
        ("", "tokens/s", "against the plain loop"),
        [(name, f"{rate:.0f}", f"{rate / rates[LOOP]:.2f}") for name, rate in rates.items()],
    )
    return {
        "tokens_per_second": rates,
        "works": {name: [asdict(one) for one in done] for name, done in works.items()},
    }


PARTS: dict[str, Callable[[Amount], dict[str, Any]]] = {"speed": speed, "chat": chat_quality, "r8": r8_quality}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of all: shows that everything runs")
    parser.add_argument("--only", choices=list(PARTS), help="one part alone")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # PEFT reads a property of the model by its old name; nothing that is measured here is concerned.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    figures: dict[str, Any] = {"machine": describe(CHAT.dtype)}
    started = time.monotonic()
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            figures[name] = part(QUICK if arguments.quick else FULL)
    figures["seconds"] = time.monotonic() - started
    print(f"\n{figures['seconds']:.0f} s in all")
    keep(FILE, figures, quick=arguments.quick)


if __name__ == "__main__":
    main()
