"""Encoder throughput against transformers' own pipelines, side by side in one run: `python bench/encoders.py`.

Embeddings by all-MiniLM-L6-v2 in bfloat16, of Reuters articles and of their first 4 to 48 words: the pipeline one by
one, in batches of 32 as they come and sorted, Tandem's batcher in the same process, and the whole service with 8
clients. Labels of images by a ViT of base size (random weights cost what trained ones cost): its pipeline and
Tandem's batcher. All sides take turns in every round; medians count. Prints a table and writes bench-encoders.json.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from bench.reuters import read_r8
from tandem import Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from tandem.settings import Settings, WorkerSettings
from tandem.specs import EmbeddingParameters
from tandem.specs.vision import ImageClassificationParameters
from worker.encoders import EncoderBatcher
from worker.tasks.feature_extraction import FeatureExtraction
from worker.tasks.vision import ImageClassification

MODEL = "all-minilm-l6-v2"
DTYPE = torch.bfloat16
ARTICLES = 128
SHORT_TEXTS = 512
IMAGES = 16
ROUNDS = 3
BATCH = 32
CLIENTS = 8
IMAGE_SIZES = (224, 320, 480, 640)
SEED = 1

Side = Callable[[], object]


def embedding_sides(texts: Sequence[str], folder: Path, settings: WorkerSettings) -> dict[str, Side]:
    """What each side does with the same texts: one normalized mean vector for each."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=DTYPE).eval()
    peer = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    limit = {"truncation": True, "max_length": model.config.max_position_embeddings}
    batcher = EncoderBatcher(
        FeatureExtraction(model, tokenizer),
        budget=settings.encoder_tokens,
        max_wait_seconds=settings.encoder_wait_seconds,
    )
    batcher.start()
    parameters = EmbeddingParameters(truncate=True)

    def by_pipeline(some: Sequence[str], batch_size: int) -> None:
        for output in peer(list(some), batch_size=batch_size, return_tensors=True, tokenize_kwargs=limit):
            torch.nn.functional.normalize(output.float().mean(dim=1)).tolist()

    return {
        "pipeline, one by one": lambda: by_pipeline(texts, 1),
        "pipeline, batches of 32": lambda: by_pipeline(texts, BATCH),
        "pipeline, batches of 32, sorted": lambda: by_pipeline(sorted(texts, key=len), BATCH),
        "tandem's batcher": lambda: batcher.run(texts, parameters),
    }


def service_side(texts: Sequence[str], client: Tandem) -> Side:
    """Eight clients of the whole service, each with a share of the texts."""
    shares = [list(texts[number::CLIENTS]) for number in range(CLIENTS)]
    options: dict[str, Any] = {"model": MODEL, "parameters": {"truncate": True}, "progress": False}

    def ask(share: list[str]) -> None:
        rows = list(client.map("feature-extraction", share, **options))
        assert len(rows) == len(share)

    def run() -> None:
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(ask, shares))

    return run


def image_sides(images: Sequence[Image.Image], settings: WorkerSettings) -> dict[str, Side]:
    model = ViTForImageClassification(ViTConfig(num_labels=1000)).to(DTYPE).eval()
    peer = pipeline("image-classification", model=model, image_processor=ViTImageProcessor())
    batcher = EncoderBatcher(
        ImageClassification(peer),
        budget=settings.encoder_pixels,
        max_wait_seconds=settings.encoder_wait_seconds,
    )
    batcher.start()
    parameters = ImageClassificationParameters()
    return {
        "pipeline, one by one": lambda: peer(list(images)),
        "pipeline, batches of 8": lambda: peer(list(images), batch_size=8),
        "tandem's batcher": lambda: batcher.run(images, parameters),
    }


def measure(sides: dict[str, Side], items: int, rounds: int) -> dict[str, float]:
    """Items a second of each side: the median of its rounds, all sides in turn, in another order each time."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    chance = random.Random(SEED)
    for _ in range(rounds):
        for name in chance.sample(list(sides), len(sides)):
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: items / statistics.median(taken) for name, taken in seconds.items()}


def show(title: str, unit: str, rates: dict[str, float]) -> None:
    first = next(iter(rates.values()))
    print(f"\n{title}")
    for name, rate in rates.items():
        print(f"  {name:36} {rate:8.1f} {unit}/s {rate / first:6.2f} x", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    asked = arguments.parse_args()
    chance = random.Random(SEED)
    articles = [text for text, _ in chance.sample(read_r8("test"), SHORT_TEXTS)]
    workloads = {
        f"{ARTICLES} articles": articles[:ARTICLES],
        f"{SHORT_TEXTS} short texts": [" ".join(text.split()[: chance.randint(4, 48)]) for text in articles],
    }
    images = [Image.effect_noise((size, size), 60).convert("RGB") for size in chance.choices(IMAGE_SIZES, k=IMAGES)]
    settings = WorkerSettings.read()
    folder = Settings.read().models_dir / MODEL
    with tempfile.TemporaryDirectory() as home:
        catalogue = Path(home) / "models.toml"
        catalogue.write_text(
            f'[[models]]\nname = "{MODEL}"\nfolder = "{folder}"\ntasks = ["feature-extraction"]\ndtype = "bfloat16"\n'
        )
        options = UpOptions(home=Path(home) / "home", port=0, flower=False)
        with (
            EmbeddedService.start(options, environment={"TANDEM_CATALOGUE": str(catalogue)}) as service,
            Tandem(service.api_url, service.api_key) as client,
        ):
            embeddings = {}
            for name, texts in workloads.items():
                sides = embedding_sides(texts, folder, settings)
                sides[f"tandem, the whole service, {CLIENTS} clients"] = service_side(texts, client)
                embeddings[name] = measure(sides, len(texts), asked.rounds)
                show(f"{MODEL}, {DTYPE}, {name}", "texts", embeddings[name])
    labels = measure(image_sides(images, settings), len(images), asked.rounds)
    show(f"ViT base, {DTYPE}, {len(images)} images", "images", labels)
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    Path("bench-encoders.json").write_text(
        json.dumps({"machine": machine, "embeddings": embeddings, "images": labels}, indent=2)
    )


if __name__ == "__main__":
    main()
