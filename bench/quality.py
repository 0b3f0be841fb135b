"""What the tasks are worth on real models and real data, through a whole service: `python bench/quality.py`.

- Embeddings (all-MiniLM-L6-v2): whether a sentence is nearer to its paraphrase than to a sentence of the same topic.
- token-classification: an adapter for people, companies and places, F1 on templates and names that it never saw.
- text-classification by a model of the catalogue (minilm-topics): accuracy on the questions that were held out.
All kinds of row run on one resident body. Prints a table and writes bench-quality.json. What a classifier that is
trained on Reuters R8 is worth is in bench/finetune.py.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.named_entities import sentences
from tandem import Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from worker.wheel_models.topics import topic_questions

MODEL = "all-minilm-l6-v2"
PARAPHRASES = (
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch.", "The dog chews on the sofa."),
    ("How do I reset my password?", "I forgot my login code, what now?", "How do I change my address?"),
    ("The bank raised its interest rates.", "Borrowing has become dearer.", "The bank opened a new branch."),
    ("He was awarded a Nobel Prize in physics.", "He won science's top honour.", "He studied physics in Paris."),
    ("The flight was cancelled because of snow.", "Bad weather kept the plane down.", "The flight was full."),
)
"""A sentence, the same in other words, and another one on its topic that shares more words with it."""
ENTITY_TRAINING: dict[str, Any] = {
    "method": {"r": 16, "alpha": 32},
    "hyperparameters": {
        "batch_size": 32,
        "epochs": 1,
        "learning_rate": 2e-3,
        "max_tokens": 64,
        "logging_steps": 20,
    },
}


def paraphrase_order(client: Tandem) -> dict[str, float]:
    inputs = [{"source_sentence": source, "sentences": [same, other]} for source, same, other in PARAPHRASES]
    rows = client.run("sentence-similarity", inputs, model=MODEL)["rows"]
    return {"right": sum(same > other for same, other in rows) / len(rows), "pairs": len(rows)}


def entities(client: Tandem, count: int) -> dict[str, float]:
    adapter, seconds = train(
        client, "token-classification", sentences(count, training=True), "entities", ENTITY_TRAINING
    )
    test = sentences(500, training=False)
    rows = client.map(
        "token-classification",
        [" ".join(row["tokens"]) for row in test],
        model=adapter,
        parameters={"aggregation_strategy": "first"},
    )
    wanted = [spans(row["tokens"], row["tags"]) for row in test]
    found = [{(entity["start"], entity["end"], entity["entity_group"]) for entity in row} for row in rows]
    hits = sum(len(one & other) for one, other in zip(wanted, found, strict=True))
    precision, recall = hits / max(1, sum(map(len, found))), hits / sum(map(len, wanted))
    return {
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
        "precision": precision,
        "recall": recall,
        "rows": len(test),
        "training_seconds": seconds,
    }


def spans(tokens: list[str], tags: list[str]) -> set[tuple[int, int, str]]:
    """(start, end, kind) of each entity, in characters of the tokens joined by spaces."""
    found: list[list[Any]] = []
    place = 0
    for token, tag in zip(tokens, tags, strict=True):
        if tag.startswith("B-"):
            found.append([place, place + len(token), tag[2:]])
        elif tag.startswith("I-"):
            found[-1][1] = place + len(token)
        place += len(token) + 1
    return {(start, end, kind) for start, end, kind in found}


def topics(client: Tandem) -> dict[str, float]:
    questions = topic_questions()
    rows = client.map("text-classification", [question for question, _ in questions.held_out], model="minilm-topics")
    right = sum(
        row[0]["label"] == questions.topics[topic] for row, (_, topic) in zip(rows, questions.held_out, strict=True)
    )
    return {"accuracy": right / len(questions.held_out), "rows": len(questions.held_out)}


def train(
    client: Tandem, task: str, rows: list[dict[str, Any]], suffix: str, options: dict[str, Any]
) -> tuple[str, float]:
    started = time.perf_counter()
    result = client.finetune(MODEL, rows, task=task, suffix=suffix, wait=True, **options)
    return result["adapter"], time.perf_counter() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sentences", type=int, default=3000)
    arguments.add_argument("--only", help="one of paraphrases, topics, entities")
    asked = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        EmbeddedService.start(UpOptions(home=Path(home) / "home", port=0, flower=False)) as service,
        Tandem(service.api_url, service.api_key) as client,
    ):
        figures = {}
        for name, measure in (
            ("paraphrases", lambda: paraphrase_order(client)),
            ("topics", lambda: topics(client)),
            ("entities", lambda: entities(client, asked.sentences)),
        ):
            if asked.only not in (None, name):
                continue
            figures[name] = measure()
            print(name, {key: round(value, 4) for key, value in figures[name].items()}, flush=True)
    Path("bench-quality.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
