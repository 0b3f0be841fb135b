"""From a spec to a queued job: what needs the catalogue, the files and the adapters is checked here."""

from typing import Any, NoReturn

from tandem.adapters import AdapterStore, is_adapter_id
from tandem.catalogue import Catalogue
from tandem.errors import AdapterMismatch, InvalidRequest, UnsupportedTask
from tandem.files import FileStore
from tandem.job_store import JobStore, Share, Submitted
from tandem.specs import FineTuneSpec, InferenceBase, TextGenerationSpec
from tandem.tickets import lane
from tandem.training_rows import check_rows


class Submission:
    def __init__(self, catalogue: Catalogue, jobs: JobStore, files: FileStore, adapters: AdapterStore) -> None:
        self._catalogue = catalogue
        self._jobs = jobs
        self._files = files
        self._adapters = adapters

    def submit(
        self,
        spec: InferenceBase | FineTuneSpec,
        *,
        owner: str,
        share: Share | None = None,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Check a spec against what there is, and queue it.

        Raises UnknownModel, UnknownAdapter, AdapterMismatch, UnsupportedTask, UnknownFile, InvalidTrainingData,
        IdempotencyConflict, QueueFull, QueueUnavailable; nothing is queued then.
        """
        if isinstance(spec, FineTuneSpec):
            self._check_training(spec)
            queue = lane("finetune", spec.model)
        else:
            spec = self._resolve(spec)
            queue = lane("inference", spec.model)
        return self._jobs.submit(
            kind=spec.kind,
            model=spec.model,
            lane=queue,
            owner=owner,
            spec=stored_spec(spec),
            scheduling=spec,
            share=share,
            idempotency_key=idempotency_key,
        )

    def _resolve(self, spec: InferenceBase) -> InferenceBase:
        """The spec with its base model's and its adapter's names apart."""
        task = getattr(spec, "task")  # noqa: B009  # every inference spec has one; the base does not type it
        adapter = spec.adapter
        if is_adapter_id(spec.model):
            if adapter is not None and adapter != spec.model:
                raise InvalidRequest("`model` names an adapter and `adapter` another: give one", param="adapter")
            manifest = self._adapters.get(spec.model, param="model")
            spec = spec.model_copy(update={"model": manifest.base, "adapter": manifest.id})
        elif adapter is not None:
            manifest = self._adapters.get(adapter)
            if manifest.base != spec.model:
                raise AdapterMismatch(
                    f"adapter {adapter!r} was trained on {manifest.base!r}, not on {spec.model!r}",
                    param="adapter",
                )
        tasks = self._catalogue.get(spec.model).tasks
        if task not in tasks:
            _refuse_task(spec.model, task, tasks)
        if spec.adapter is not None and not isinstance(spec, TextGenerationSpec):
            raise UnsupportedTask(f"adapters are served for text-generation only, not for {task}", param="adapter")
        return spec

    def _check_training(self, spec: FineTuneSpec) -> None:
        if is_adapter_id(spec.model):
            raise InvalidRequest("`model` names an adapter; training starts from a base model", param="model")
        tasks = self._catalogue.get(spec.model).tasks
        if spec.task not in tasks:
            _refuse_task(spec.model, spec.task, tasks)
        for param in ("training_file", "validation_file"):
            file_id = getattr(spec, param)
            if file_id is None:
                continue
            file = self._files.get(file_id, param=param)
            if file.purpose != "fine-tune":
                raise InvalidRequest(
                    f"`{param}` {file_id} was uploaded for {file.purpose!r}; upload it with purpose 'fine-tune'",
                    param=param,
                )
            check_rows(self._files.content(file), param=param)


def stored_spec(spec: InferenceBase | FineTuneSpec) -> dict[str, Any]:
    """What the record keeps: all that differs from the defaults, and which spec it is."""
    return {
        **spec.model_dump(mode="json", exclude_defaults=True),
        **spec.model_dump(mode="json", include={"kind", "task", "model"}),
    }


def _refuse_task(model: str, task: str, tasks: tuple[str, ...]) -> NoReturn:
    raise UnsupportedTask(f"model {model!r} does not do {task!r}; it does: {', '.join(tasks)}", param="task")
