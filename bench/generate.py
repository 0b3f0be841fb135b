"""Many requests through the whole service against `generate()` one at a time, in one run: `python bench/generate.py`.

The same prompts, model, dtype and greedy limits for both. Prints a table and writes bench-generate.json.
"""

import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem import Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from tandem.settings import Settings
from worker.device import choose_dtype

MODEL = "smollm2-135m-instruct"
REQUESTS = 64
SEED = 1
WORDS = (
    "river",
    "stone",
    "paper",
    "window",
    "garden",
    "silver",
    "market",
    "engine",
    "letter",
    "summer",
    "bridge",
    "cotton",
)


def workload() -> list[tuple[str, int]]:
    """Prompts of 16 to 200 words with answers of 8 to 96 tokens: short and long ones mixed."""
    chance = random.Random(SEED)
    return [
        (" ".join(chance.choices(WORDS, k=chance.randint(16, 200))), min(96, 8 + int(chance.expovariate(1 / 36))))
        for _ in range(REQUESTS)
    ]


def through_the_service(requests: list[tuple[str, int]]) -> tuple[float, int]:
    """Seconds and tokens, from the first submission to the last result, after the model is resident."""
    with (
        tempfile.TemporaryDirectory() as home,
        EmbeddedService.start(UpOptions(home=Path(home) / "home", port=0, flower=False)) as service,
        Tandem(service.api_url, service.api_key) as client,
    ):
        client.run("text-generation", "warm up", model=MODEL, parameters={"max_new_tokens": 4})
        started = time.perf_counter()
        jobs = [
            client.submit("text-generation", prompt, model=MODEL, parameters={"max_new_tokens": tokens})
            for prompt, tokens in requests
        ]
        generated = sum(job.wait(timeout=600)["completion_tokens"] for job in jobs)
        return time.perf_counter() - started, generated


@torch.inference_mode()
def one_at_a_time(requests: list[tuple[str, int]]) -> tuple[float, int]:
    folder = Settings.read().models_dir / MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=choose_dtype("auto", torch.device("cpu"))).eval()
    model.generate(**tokenizer("warm up", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    generated = 0
    started = time.perf_counter()
    for prompt, tokens in requests:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        generated += output.shape[1] - inputs.input_ids.shape[1]
    return time.perf_counter() - started, generated


def main() -> None:
    requests = workload()
    figures = {}
    for name, measure in (("one at a time", one_at_a_time), ("tandem", through_the_service)):
        seconds, tokens = measure(requests)
        figures[name] = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
        print(f"{name:14} {seconds:7.1f} s {tokens:6d} tokens {tokens / seconds:7.1f} tokens/s", flush=True)
    ratio = figures["tandem"]["tokens_per_second"] / figures["one at a time"]["tokens_per_second"]
    print(f"ratio          {ratio:7.2f}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    Path("bench-generate.json").write_text(json.dumps({"machine": machine, "ratio": ratio, **figures}, indent=2))


if __name__ == "__main__":
    main()
