"""The catalogue: the models that may be loaded, and nothing else is. A TOML file of `[[models]]` tables."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from tandem.errors import ConfigurationError, UnknownModel, UnsupportedTask
from tandem.settings import Settings
from tandem.specs import NAME_PATTERN, NamedTask, Spec, Task


class CatalogueEntry(Spec):
    """One model: a folder or a hub id. Its files must be safetensors; code that ships with a model is not run."""

    name: str = Field(pattern=NAME_PATTERN)
    tasks: tuple[NamedTask, ...] = Field(min_length=1)
    """What it is offered for; adapters for encoders need `feature-extraction` among them."""
    default_for: tuple[NamedTask, ...] = ()
    """Tasks whose jobs it does when they name no model; otherwise the first entry that has the task."""
    folder: Path | None = None
    """Absolute, or relative to the models folder (TANDEM_MODELS_DIR)."""
    hub: str | None = None
    """An id on the Hugging Face hub, for machines with internet."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device computes with it, float32 elsewhere."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: linear layers in 4 bits that compute in `dtype`, for text-generation alone. They take about 0.3 of
    bfloat16's memory, at some loss of quality, and are slower on CPUs. The worker needs the extra `quantization`."""
    max_tokens: int | None = Field(default=None, ge=8)
    """A lower limit on prompt and answer together than the model's own."""

    @model_validator(mode="after")
    def _one_source(self) -> "CatalogueEntry":
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give either `folder` or `hub`")
        if foreign := set(self.default_for) - set(self.tasks):
            raise ValueError(f"`default_for` names {', '.join(sorted(foreign))}, which is not among its `tasks`")
        if self.quantization is not None and self.tasks != ("text-generation",):
            raise ValueError("`quantization` is for models whose only task is text-generation")
        return self


class Catalogue:
    def __init__(self, entries: tuple[CatalogueEntry, ...]) -> None:
        self._entries = {entry.name: entry for entry in entries}

    @classmethod
    def load(cls, settings: Settings) -> "Catalogue":
        """Read the catalogue file; its relative folders are resolved. Raises ConfigurationError naming the entry."""
        source = settings.catalogue or resources.files("tandem").joinpath("models.toml")
        try:
            tables = tomllib.loads(source.read_text(encoding="utf-8")).get("models", [])
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"catalogue {source}: {error}", param="TANDEM_CATALOGUE") from error
        entries = []
        for number, table in enumerate(tables):
            try:
                entry = CatalogueEntry.model_validate(table)
            except ValidationError as error:
                raise ConfigurationError(
                    f"catalogue {source}: models[{number}] ({table.get('name')}): {error.errors()[0]['msg']}",
                    param="TANDEM_CATALOGUE",
                ) from error
            if entry.folder is not None:
                entry = entry.model_copy(update={"folder": settings.models_dir / entry.folder})
            entries.append(entry)
        return cls(tuple(entries))

    def get(self, name: str) -> CatalogueEntry:
        """Raises UnknownModel, naming the models that there are."""
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self._entries) or "none"
            raise UnknownModel(f"no model {name!r} is in the catalogue; it has: {known}", param="model") from None

    def default(self, task: Task) -> CatalogueEntry:
        """The model of a job that names none. Raises UnsupportedTask if none does the task."""
        doing = [entry for entry in self._entries.values() if task in entry.tasks]
        chosen = next((entry for entry in doing if task in entry.default_for), doing[0] if doing else None)
        if chosen is None:
            raise UnsupportedTask(
                f"no model of the catalogue does {task!r}; add one to the catalogue (TANDEM_CATALOGUE)", param="task"
            )
        return chosen

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entries(self) -> tuple[CatalogueEntry, ...]:
        return tuple(self._entries.values())
