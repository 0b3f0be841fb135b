"""A whole service whose catalogue has a tiny model for every task, and the known programs' models by their names."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem import Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from tandem.settings import Settings
from tests.tiny_models import TINY_MODELS, build
from tests.tiny_models.swin2sr import build_swin2sr

KNOWN_PROGRAMS = {
    "meta-llama/Llama-2-7b-chat-hf": ("tiny-llama", "text-generation"),
    "distilbert-base-uncased-finetuned-sst-2-english": ("tiny-bert-sentiment", "text-classification"),
    "Helsinki-NLP/opus-mt-en-fr": ("tiny-marian", "translation"),
    "deepset/roberta-base-squad2": ("tiny-bert-answers", "question-answering"),
    "bigcode/starcoder": ("tiny-llama", "text-generation"),
}
"""The models of docs/from-transformers.md: each name, the tiny model that stands for it, and its task."""


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every tiny model's folder, by its name."""
    root = tmp_path_factory.mktemp("tiny-models")
    return {name: build(name, root / name) for name in TINY_MODELS}


@pytest.fixture(scope="session")
def tasks_service(
    tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedService]:
    home = tmp_path_factory.mktemp("tasks-service")
    real = Settings.read().models_dir
    models = [
        *(
            _entry(name, tiny_folders[tiny], (task,), default_for=(task,) if "sst-2" in name else ())
            for name, (tiny, task) in KNOWN_PROGRAMS.items()
        ),
        *(_entry(name, tiny_folders[name], entry.tasks) for name, entry in TINY_MODELS.items()),
        _entry("tiny-donut-captions", tiny_folders["tiny-donut"], ("image-to-text",)),
        _entry("tiny-swin2sr", build_swin2sr(home / "tiny-swin2sr"), ("image-to-image",)),
        # What it writes can be compared word for word with another program's: the catalogue's own entry is bfloat16.
        _entry("smollm2-float32", real / "smollm2-135m-instruct", ("text-generation",)),
        _entry("all-minilm-l6-v2", real / "all-minilm-l6-v2", ("feature-extraction", "sentence-similarity")),
    ]
    catalogue = home / "models.toml"
    catalogue.write_text("\n".join(models), encoding="utf-8")
    options = UpOptions(home=home / "home", port=0, flower=False)
    with EmbeddedService.start(options, environment={"TANDEM_CATALOGUE": str(catalogue)}) as service:
        yield service


@pytest.fixture
def tasks_client(tasks_service: EmbeddedService) -> Iterator[Tandem]:
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        yield client


def _entry(name: str, folder: Path, tasks: tuple[str, ...], default_for: tuple[str, ...] = ()) -> str:
    def listed(values: tuple[str, ...]) -> str:
        return ", ".join(f'"{value}"' for value in values)

    return (
        f'[[models]]\nname = "{name}"\nfolder = "{folder}"\ntasks = [{listed(tasks)}]\ndtype = "float32"\n'
        f"default_for = [{listed(default_for)}]\n"
    )
