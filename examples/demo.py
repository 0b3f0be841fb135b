"""The main job, end to end and on real parts: fine-tune an adapter, and use it beside its base.

    make demo                about five minutes on two cores
    make demo ARGS=--keep    leaves the service running at the end, to look around

Exit code 0 means that every step did what it says: each one checks its own outcome.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import chatterbot
import demo_view as view
import typer

from tandem import JobHandle, Tandem, TandemError
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from tandem.home import Home

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
TOPIC_MODEL = "minilm-topics"

DEMO_HOME = Path(".tandem-demo")
"""Emptied at each start; any other home must be new."""
STEPS = 120
"""Optimizer steps of 8 rows: a pass and a half over the data, and the greatest part of the demo's time."""
EVALUATIONS = 4
"""Of the held-out part while it trains, after the one before: enough to see a curve."""
ROW_TOKENS = 128
"""Longer rows are cut; there are few, and they would take much of the time."""
ANSWER_TOKENS = 40
COMPARED = 5
"""Held-out questions that base and adapter both answer."""

QUESTIONS = ("What is the capital of France?", "Name three primary colours.", "Why is the sky blue?")
TEXTS = (
    "A cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "The stock market fell sharply today.",
    "Share prices dropped this afternoon.",
)
SAME_MEANING = ((0, 1), (2, 3))
TOPICS = {
    "Write a function that reverses a string in Python.": "coding",
    "I feel sad today.": "emotion",
    "Explain quantum mechanics to me.": "science",
}
"""What the classifier should say of each text; none of them is among the questions that it was fitted to."""


class CheckFailed(Exception):
    """A step did not do what it says."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise CheckFailed(f"this does not hold: {what}")


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@dataclass
class Progress:
    """Which step runs, for the message if it fails."""

    begun: float = field(default_factory=time.monotonic)
    number: int = 0
    title: str = "preparing"

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number, self.title = self.number + 1, title
        view.step_begins(self.number, title)
        begun = time.monotonic()
        yield
        view.step_ends(time.monotonic() - begun)


def chat_jobs(client: Tandem) -> None:
    answers = client.map(
        "text-generation",
        [chat(question) for question in QUESTIONS],
        model=CHAT_MODEL,
        parameters={"max_new_tokens": ANSWER_TOKENS},
    )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        view.answer(question, answer["generated_text"], answer["completion_tokens"])
        check(bool(answer["generated_text"].strip()), f"{question!r} has an answer")


def embedding_job(client: Tandem) -> None:
    vectors = client.run("feature-extraction", TEXTS, model=EMBEDDING_MODEL)["rows"]
    similarity = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in vectors] for one in vectors]
    view.similarity_table(TEXTS, similarity)
    for left, right in SAME_MEANING:
        others = [similarity[left][place] for place in range(len(TEXTS)) if place not in (left, right)]
        check(similarity[left][right] > max(others), f"{TEXTS[left]!r} is closest to {TEXTS[right]!r}")


def classification_job(client: Tandem) -> None:
    texts = list(TOPICS)
    rows = client.run("text-classification", texts, model=TOPIC_MODEL, parameters={"top_k": 3})["rows"]
    view.topics_table(texts, rows)
    for (text, topic), row in zip(TOPICS.items(), rows, strict=True):
        check(row[0]["label"] == topic, f"{text!r} is about {topic}")


def fine_tune(client: Tandem, data: chatterbot.Split, steps: int) -> JobHandle:
    training = client.upload([exchange.row for exchange in data.training])
    held_out = client.upload([exchange.row for exchange in data.held_out])
    view.uploaded("training", training.id, len(data.training), training.bytes)
    view.uploaded("held out", held_out.id, len(data.held_out), held_out.bytes)
    check(
        not _questions(data.training) & _questions(data.held_out),
        "no question of the held-out part was trained on",
    )
    return client.finetune(
        CHAT_MODEL,
        training,
        held_out,
        suffix="chatterbot",
        method={"r": 8, "alpha": 16},
        hyperparameters={
            "max_steps": steps,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "max_tokens": ROW_TOKENS,
            "eval_steps": max(steps // EVALUATIONS, 1),
        },
    )


def follow(job: JobHandle) -> view.LossCurve:
    """Show the loss while the job trains; returns the curve."""
    with view.LossCurve() as curve:
        for event in job.events():
            curve.show(event)
    return curve


def trained_adapter(client: Tandem, job: JobHandle, curve: view.LossCurve, steps: int) -> str:
    result = job.wait()
    adapter, metrics = str(result["adapter"]), result["metrics"]
    view.training_outcome(adapter, metrics)
    check(metrics["steps"] == steps == curve.training[-1][0], f"{steps} steps were trained and shown")
    check(metrics["validation_loss_after"] < metrics["validation_loss_before"], "the held-out loss fell")
    check(adapter in {model.id for model in client.models()}, f"{adapter} is in the list of models")
    check(client.adapter(adapter).base == CHAT_MODEL, f"{adapter} names its base")
    return adapter


def compare(client: Tandem, adapter: str, data: chatterbot.Split) -> None:
    """Ask base and adapter the same held-out questions, all at once: they share the batch."""
    exchanges = _from_all_over(data.held_out)
    jobs = [
        client.submit(
            "text-generation",
            chat(exchange.question),
            model=CHAT_MODEL,
            adapter=name,
            parameters={"max_new_tokens": ANSWER_TOKENS},
        )
        for exchange in exchanges
        for name in (None, adapter)
    ]
    texts = [str(job.wait()["generated_text"]).strip() for job in jobs]
    of_base, of_adapter = texts[::2], texts[1::2]
    view.side_by_side([exchange.question for exchange in exchanges], of_base, of_adapter)
    check(all(texts), "each question has an answer of both")
    check(of_base != of_adapter, "the adapter answers otherwise than its base")
    ended = [job.refresh() for job in jobs]
    together = sum(_overlap(base, other) for base in ended[::2] for other in ended[1::2])
    view.note(f"{together} of {len(exchanges) ** 2} pairs of a base's and an adapter's job ran at the same time")
    check(together > 0, "base and adapter were served at the same time")


def draw(curve: view.LossCurve, output: Path) -> None:
    picture = output / "loss.png"
    curve.draw_png(picture)
    curve.draw_in_terminal()
    view.note(f"the same as a picture: {picture}")
    check(picture.read_bytes().startswith(b"\x89PNG"), f"{picture} is a PNG")


def _questions(exchanges: list[chatterbot.Exchange]) -> set[str]:
    return {chatterbot.question_key(exchange.question) for exchange in exchanges}


def _from_all_over(exchanges: list[chatterbot.Exchange]) -> list[chatterbot.Exchange]:
    """A few questions from all over the held-out part."""
    distinct = list({exchange.question: exchange for exchange in exchanges}.values())
    return distinct[:: max(len(distinct) // COMPARED, 1)][:COMPARED]


def _overlap(left: JobHandle, right: JobHandle) -> bool:
    times = (left.started_at, left.finished_at, right.started_at, right.finished_at)
    check(None not in times, "an ended job knows when it began and ended")
    return max(times[0] or 0, times[2] or 0) < min(times[1] or 0, times[3] or 0)


def run(home: Path, output: Path, steps: int, progress: Progress, *, keep: bool) -> None:
    data = chatterbot.load()
    with EmbeddedService.start(UpOptions(home=home, port=0, flower_port=0)) as service:
        view.addresses(service.running)
        with Tandem(service.api_url, service.api_key) as client:
            with progress.step("Chat: SmolLM2-135M answers"):
                chat_jobs(client)
            with progress.step("Embeddings: how alike are these sentences?"):
                embedding_job(client)
            with progress.step("Classification: what are these about?"):
                classification_job(client)
            with progress.step("Fine-tuning: a LoRA adapter from chatterbot-corpus"):
                job = fine_tune(client, data, steps)
                curve = follow(job)
                adapter = trained_adapter(client, job, curve, steps)
            with progress.step("Base and adapter, in the same batch, on questions that neither has seen"):
                compare(client, adapter, data)
            with progress.step("The loss curve"):
                draw(curve, output)
        view.finished(time.monotonic() - progress.begun, home, service.running if keep else None)
        if keep:
            view.wait_for_interrupt()


def main(
    home: Annotated[Path, typer.Option(help="Folder of the service's data; a new one.")] = DEMO_HOME,
    output: Annotated[Path, typer.Option(help="Folder of the picture.")] = Path("demo-output"),
    steps: Annotated[int, typer.Option(min=2, help="Training steps; fewer are faster and teach less.")] = STEPS,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running until Ctrl-C.")] = False,
) -> None:
    """Fine-tune an adapter and use it, end to end."""
    progress = Progress()
    try:
        _make_fresh(home)
        output.mkdir(parents=True, exist_ok=True)
        run(home, output, steps, progress, keep=keep)
    except Exception as error:
        view.failed(progress.number, progress.title, error, home / "logs")
        if not isinstance(error, (TandemError, CheckFailed, OSError)):
            raise  # not foreseen: its traceback says more
        sys.exit(1)


def _make_fresh(home: Path) -> None:
    """Empty the demo's own home. Raises ConfigurationError if a service runs in it, CheckFailed for any other."""
    if not home.exists() or not any(home.iterdir()):
        return
    if home != DEMO_HOME:
        raise CheckFailed(f"{home} is not empty; name a new folder in --home")
    with Home(home).locked():
        shutil.rmtree(home)


if __name__ == "__main__":
    typer.run(main)
