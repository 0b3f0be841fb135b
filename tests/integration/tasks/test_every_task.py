"""Every task as a job of a running service, by Tandem's own client."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tandem import InvalidRequest, Tandem, TandemError, UnsupportedTask
from tandem.embedded_service import EmbeddedService
from tandem.specs import TASKS
from tests.integration.tasks.jobs import JOBS, PICTURE
from tests.tiny_models import samples


@pytest.fixture(scope="module")
def rows(tasks_service: EmbeddedService) -> Iterator[dict[str, Any]]:
    """The result of each task's job; all were submitted before the first was waited for."""
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        jobs = {
            task: client.submit(task, inputs, model=model, parameters=parameters)
            for task, (model, inputs, parameters) in JOBS.items()
        }
        yield {task: _result(job.wait) for task, job in jobs.items()}


def _result(wait: Callable[[], Any]) -> Any:
    try:
        return wait()
    except TandemError as error:
        return error


def test_every_task_is_here() -> None:
    assert set(JOBS) == set(TASKS)


@pytest.mark.parametrize("task", JOBS)
def test_a_job_of_the_task_succeeds(rows: dict[str, Any], task: str) -> None:
    """What it gives is the library's own answer: tests/golden compares them."""
    result = rows[task]
    assert not isinstance(result, TandemError), result
    if task == "text-generation":
        assert result["completion_tokens"] <= 4
    else:
        assert len(result["rows"]) == 1
        assert "error" not in json.dumps(result["rows"][0])[:10]


def test_files_of_a_result_are_read_by_the_client_and_by_another_job(
    rows: dict[str, Any], tasks_client: Tandem
) -> None:
    depth = rows["depth-estimation"]["rows"][0]["depth"]
    image = Image.open(io.BytesIO(tasks_client.read_file(depth)))
    assert (image.size, depth["media_type"]) == (PICTURE.size, "image/png")
    labels = tasks_client.run("image-classification", depth["artifact"], model="tiny-vit")["rows"][0]
    assert sum(label["score"] for label in labels) == pytest.approx(1.0, abs=1e-4)


def test_many_inputs_are_one_job_and_a_bad_one_keeps_its_error(tasks_client: Tandem) -> None:
    pictures = [PICTURE, b"no image", samples.image(50, 70)]
    result = tasks_client.submit("image-classification", pictures, model="tiny-vit", on_row_error="keep").wait(
        timeout=60
    )
    good, bad, other = result["rows"]
    assert bad["error"]["code"] == "invalid_request"
    assert bad["error"]["param"] == "inputs[1]"
    assert good[0]["score"] > 0
    assert other[0]["score"] > 0
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]"):
        tasks_client.run("image-classification", pictures, model="tiny-vit")


def test_a_bomb_is_that_jobs_error(tasks_client: Tandem, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(InvalidRequest, match="100,000,000 pixels"):
        tasks_client.run("image-classification", path, model="tiny-vit")


def test_map_gives_each_input_its_row(tasks_client: Tandem) -> None:
    texts = [f"the sea was calm {number}" for number in range(100)]
    mapped = list(tasks_client.map("text-classification", [*texts, ""], rows=16, on_error="return"))
    assert isinstance(mapped.pop(), InvalidRequest)
    alone = tasks_client.run("text-classification", texts[77])["rows"][0]
    assert [label["label"] for label in mapped[77]] == [label["label"] for label in alone]
    assert len(mapped) == 100


def test_a_large_image_is_uploaded_first(tasks_client: Tandem, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    assert path.stat().st_size > 2_000_000
    assert tasks_client.run("image-classification", path, model="tiny-vit")["rows"][0]


def test_a_parameter_is_refused_by_name_before_it_is_queued(tasks_client: Tandem) -> None:
    with pytest.raises(InvalidRequest, match="unsupported parameter") as refused:
        tasks_client.submit("image-classification", PICTURE, model="tiny-vit", parameters={"top": 3})
    assert refused.value.param == "parameters.top"
    with pytest.raises(UnsupportedTask, match="tiny-vit"):
        tasks_client.submit("object-detection", PICTURE, model="tiny-vit")


def test_models_show_where_they_are_and_what_they_weigh(rows: dict[str, Any], tasks_client: Tandem) -> None:
    models = {model.id: model for model in tasks_client.models()}
    (place,) = models["tiny-vit"].resident
    assert (place["task"], place["device"]) == ("image-classification", "cpu")
    assert place["bytes"] > 1000
    assert "text-classification" in models["distilbert-base-uncased-finetuned-sst-2-english"].default_for


def test_batches_are_in_the_metrics(rows: dict[str, Any], tasks_service: EmbeddedService) -> None:
    url = f"{tasks_service.api_url}/metrics"
    assert httpx.get(url).status_code == 401
    text = httpx.get(url, headers={"Authorization": f"Bearer {tasks_service.api_key}"}).text
    line = next(
        line for line in text.splitlines() if line.startswith("tandem_batch_rows_total") and 'tiny-vit"' in line
    )
    assert float(line.rsplit(" ", 1)[1]) >= 1
    for name in ("tandem_batch_wait_seconds_total", "tandem_worker_training_seconds_total"):
        assert name in text
