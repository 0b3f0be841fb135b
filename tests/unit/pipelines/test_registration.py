"""How transformers' `pipeline()` comes to know the tasks that its version 5 dropped."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from tandem.specs.tasks import TASKS
from worker.pipelines import DROPPED, library_name, register

Folder = Callable[[str], Path]

MODELS = {
    "question-answering": "tiny-bert-answers",
    "summarization": "tiny-bart",
    "text2text-generation": "tiny-t5",
    "translation": "tiny-marian",
    "visual-question-answering": "tiny-vilt",
}


@pytest.mark.parametrize(("task", "model"), MODELS.items())
def test_the_library_builds_each_with_all_that_its_folder_has(tiny_folder: Folder, task: str, model: str) -> None:
    register()
    options: dict[str, Any] = {"model": str(tiny_folder(model)), "device": "cpu"}
    made: Any = pipeline(library_name(task), **options)  # type: ignore[call-overload]  # the overloads know the library's own tasks alone
    assert type(made) is DROPPED[task][0]
    assert made.tokenizer is not None
    assert (made.image_processor is not None) == (task == "visual-question-answering")


def test_a_second_call_does_nothing_in_any_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The library warns of a task that is registered twice, and would replace its pipeline."""
    names = [library_name(task) for task in DROPPED]
    for name in names:
        PIPELINE_REGISTRY.supported_tasks.pop(name, None)
    start = Barrier(8)

    def together() -> None:
        start.wait(10)
        register()

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(together) for _ in range(8)]:
                done.result()
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "already registered" in record.getMessage()]
    assert [PIPELINE_REGISTRY.supported_tasks[name]["impl"] for name in names] == [
        made for made, *_ in DROPPED.values()
    ]


def test_the_librarys_own_tasks_keep_their_names() -> None:
    register()
    kept = {task for task in TASKS if task not in DROPPED} - {"sentence-similarity"}
    assert all(library_name(task) == task for task in kept)
    assert all(PIPELINE_REGISTRY.check_task(task)[0] == task for task in kept)
