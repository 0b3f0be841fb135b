"""text-generation by the library's own `generate()`: what its pipeline writes, with the engine's fields."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import Cancelled, InvalidRequest, PromptTooLong
from tandem.specs import GenerationParameters, job_spec_adapter
from tests.golden.text_jobs import BUDGET, library
from tests.tiny_models import samples
from worker.encoders import EncoderBatcher
from worker.tasks.text_generation import TextGenerationByGenerate

Folder = Callable[[str], Path]

PROMPTS = [samples.SENTENCES[5], samples.SENTENCES[0], samples.SENTENCES[3], samples.SENTENCES[6]]


@pytest.fixture
def task(tiny_folder: Folder) -> TextGenerationByGenerate:
    return TextGenerationByGenerate(library("text-generation", tiny_folder("tiny-llama")))


class Prompts:
    """Prompts, each a job, submitted before the batcher starts."""

    def __init__(self, task: TextGenerationByGenerate) -> None:
        self._task = task
        self.batcher = EncoderBatcher(task, budget=BUDGET, max_wait_seconds=0)
        self._futures: list[Future[list[Any]]] = []

    def submit(self, inputs: Any, parameters: dict[str, Any], **options: Any) -> None:
        spec: Any = job_spec_adapter.validate_python(
            {"kind": "inference", "task": "text-generation", "inputs": inputs, "parameters": parameters}
        )
        no_media: Any = None
        read = self._task.read(spec.inputs, no_media, "inputs")
        self._futures.append(self.batcher.submit([read], spec.parameters, **options))

    def run(self) -> list[Any]:
        self.batcher.start()
        try:
            return [future.result(60)[0] for future in self._futures]
        finally:
            self.batcher.stop()


@pytest.mark.parametrize("tokens", [1, 9])
def test_greedy_prompts_share_a_forward_and_get_the_librarys_text(
    task: TextGenerationByGenerate, tiny_folder: Folder, tokens: int
) -> None:
    pipe = library("text-generation", tiny_folder("tiny-llama"))
    expected = [
        pipe(prompt, max_new_tokens=tokens, do_sample=False, return_full_text=False)[0]["generated_text"]
        for prompt in PROMPTS
    ]
    prompts = Prompts(task)
    for prompt in PROMPTS:
        prompts.submit(prompt, {"max_new_tokens": tokens})
    results = prompts.run()
    assert prompts.batcher.counts.batches == 1
    assert [result["generated_text"] for result in results] == expected
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result["prompt_tokens"] == len(pipe.tokenizer(prompt).input_ids)
        assert (result["finish_reason"], result["completion_tokens"]) == ("length", tokens)
        assert result["path"] == "generate"


def test_a_chat_goes_through_the_models_template(task: TextGenerationByGenerate, tiny_folder: Folder) -> None:
    pipe = library("text-generation", tiny_folder("tiny-llama"))
    chat = [dict(message) for message in samples.CHAT]
    expected = pipe(chat, max_new_tokens=6, do_sample=False)[0]["generated_text"][-1]["content"]
    prompts = Prompts(task)
    prompts.submit(chat, {"max_new_tokens": 6, "return_full_text": True})
    (result,) = prompts.run()
    assert result["generated_text"] == expected


def test_messages_without_a_template_are_refused(task: TextGenerationByGenerate) -> None:
    task.pipeline.tokenizer.chat_template = None
    with pytest.raises(InvalidRequest, match="no chat template; send one text"):
        Prompts(task).submit([dict(message) for message in samples.CHAT], {})


def test_an_end_token_ends_one_row_and_not_its_neighbours(
    task: TextGenerationByGenerate, tiny_folder: Folder
) -> None:
    """The rows that ended are filled up; neither their text nor their count shows it."""
    pipe = library("text-generation", tiny_folder("tiny-llama"))
    first = Prompts(task)
    first.submit(PROMPTS[0], {"max_new_tokens": 9})
    (alone,) = first.run()
    ids = pipe(PROMPTS[0], max_new_tokens=9, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
    written = ids[len(pipe.tokenizer(PROMPTS[0]).input_ids) :]
    end = written[3]
    task.pipeline.model.generation_config.eos_token_id = [end]
    prompts = Prompts(task)
    for prompt in PROMPTS:
        prompts.submit(prompt, {"max_new_tokens": 9})
    ended, *others = prompts.run()
    assert prompts.batcher.counts.batches == 1
    assert (ended["finish_reason"], ended["completion_tokens"]) == ("stop", written.index(end) + 1)
    assert alone["generated_text"].startswith(ended["generated_text"])
    assert any(other["completion_tokens"] == 9 for other in others)


def test_text_ends_before_a_stop_string(task: TextGenerationByGenerate) -> None:
    first = Prompts(task)
    first.submit(PROMPTS[1], {"max_new_tokens": 9})
    (whole,) = first.run()
    text = whole["generated_text"]
    stop = text[4:7]
    prompts = Prompts(task)
    prompts.submit(PROMPTS[1], {"max_new_tokens": 9, "stop": [stop], "return_full_text": True})
    (result,) = prompts.run()
    assert result["generated_text"] == PROMPTS[1] + text[: text.index(stop)]
    assert result["finish_reason"] == "stop"
    assert result["completion_tokens"] < 9


def test_a_seed_decides_what_is_drawn_whoever_else_runs(task: TextGenerationByGenerate) -> None:
    drawn = {"max_new_tokens": 9, "temperature": 1.5, "seed": 7}
    alone = Prompts(task)
    alone.submit(PROMPTS[0], drawn)
    (expected,) = alone.run()
    prompts = Prompts(task)
    prompts.submit(PROMPTS[0], {**drawn, "seed": 8})
    prompts.submit(PROMPTS[2], {**drawn, "seed": None})
    prompts.submit(PROMPTS[0], drawn)
    other, _, found = prompts.run()
    assert prompts.batcher.counts.batches == 1
    assert found == expected
    assert other["generated_text"] != expected["generated_text"]


def test_a_prompt_and_its_text_must_fit_a_learned_table_together(tiny_folder: Folder) -> None:
    """Llama computes its positions, so a stand-in table is put on it."""
    task = TextGenerationByGenerate(library("text-generation", tiny_folder("tiny-llama")))
    task.max_tokens = 20
    with pytest.raises(
        PromptTooLong, match=r"inputs\[0\] has \d+ tokens and 15 are to be written; the model holds 20"
    ):
        task.encode([PROMPTS[0] + " the sea" * 3], GenerationParameters(max_new_tokens=15))
    ((piece,),) = task.encode(["yes"], GenerationParameters(max_new_tokens=15))
    assert len(piece) == 16


def test_a_cancelled_job_stops_between_two_tokens(task: TextGenerationByGenerate) -> None:
    calls = 0

    def should_stop() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise Cancelled

    prompts = Prompts(task)
    prompts.submit(PROMPTS[0], {"max_new_tokens": 100}, should_stop=should_stop)
    with pytest.raises(Cancelled):
        prompts.run()
    assert calls == 4
