"""From a spec to a queued job: what needs the catalogue, the files and the adapters is checked here."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from tandem.adapter_aliases import AdapterAliases
from tandem.adapters import AdapterManifest, is_adapter_id
from tandem.artifacts import ArtifactStore
from tandem.catalogue import Catalogue
from tandem.errors import AdapterMismatch, InvalidRequest, UnknownArtifact, UnsupportedTask
from tandem.files import FileStore
from tandem.job_store import JobStore, Share, Submitted
from tandem.specs import AnyInferenceSpec, FineTuneSpec, Media, replace_media
from tandem.specs.batch import BatchSpec
from tandem.specs.finetune import RESIDENT_TASK, base_does
from tandem.tickets import lane
from tandem.training_rows import check_training_files


class Submission:
    def __init__(
        self,
        catalogue: Catalogue,
        jobs: JobStore,
        files: FileStore,
        aliases: AdapterAliases,
        artifacts: ArtifactStore,
    ) -> None:
        self._catalogue = catalogue
        self._jobs = jobs
        self._files = files
        self._aliases = aliases
        self._artifacts = artifacts

    def submit(
        self,
        spec: AnyInferenceSpec | FineTuneSpec,
        *,
        owner: str,
        reach: str | None = None,
        share: Share | None = None,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Check a spec against what there is, and queue it. `reach`: whose files and adapters there are to it; None:
        everybody's.

        Raises UnknownModel, UnknownAdapter, AdapterMismatch, UnsupportedTask, UnknownFile, UnknownArtifact,
        InvalidTrainingData, IdempotencyConflict, QueueFull, QueueUnavailable; nothing is queued then.
        """
        if isinstance(spec, FineTuneSpec):
            self._check_training(spec, reach)
            model, queue = spec.model, lane("finetune", spec.model)
        else:
            spec, model = self.resolve(spec, owner=owner, reach=reach)
            queue = lane("inference", model)
        return self._jobs.submit(
            kind=spec.kind,
            model=model,
            lane=queue,
            owner=owner,
            spec=stored_spec(spec),
            scheduling=spec,
            share=share,
            idempotency_key=idempotency_key,
        )

    def resolve(
        self, spec: AnyInferenceSpec, *, owner: str, reach: str | None = None
    ) -> tuple[AnyInferenceSpec, str]:
        """The spec with its base model's and its adapter's names apart and its media in the store; and the model.

        Raises what `submit` raises for a spec that cannot be run here.
        """
        model, adapter = self._model_and_adapter(spec, owner, reach)
        tasks = self._catalogue.get(model).tasks
        if adapter is None:
            if spec.task not in tasks:
                _refuse_task(model, spec.task, tasks)
        elif not adapter.does(spec.task):
            raise UnsupportedTask(
                f"adapter {adapter.id!r} was trained for {adapter.task}, not for {spec.task}", param="task"
            )
        changes = {
            "model": model,
            "adapter": None if adapter is None else adapter.id,
            "inputs": replace_media(spec.inputs, partial(self._store_media, owner=reach), "inputs"),
        }
        return spec.model_copy(update=changes), model

    def _model_and_adapter(
        self, spec: AnyInferenceSpec, owner: str, reach: str | None
    ) -> tuple[str, AdapterManifest | None]:
        find = partial(self._aliases.find, owner=owner, reach=reach)
        if spec.model is None:
            if spec.adapter is None:
                return self._catalogue.default(spec.task).name, None
            manifest = find(spec.adapter, param="adapter")
            return manifest.base, manifest
        if is_adapter_id(spec.model) or (
            spec.model not in self._catalogue and self._aliases.get(spec.model, owner=owner)
        ):
            if spec.adapter is not None and spec.adapter != spec.model:
                raise InvalidRequest("`model` names an adapter and `adapter` another: give one", param="adapter")
            manifest = find(spec.model, param="model")
            return manifest.base, manifest
        if spec.adapter is None:
            return spec.model, None
        manifest = find(spec.adapter, param="adapter")
        if manifest.base != spec.model:
            raise AdapterMismatch(
                f"adapter {spec.adapter!r} was trained on {manifest.base!r}, not on {spec.model!r}",
                param="adapter",
            )
        return spec.model, manifest

    def _store_media(self, media: Media, param: str, *, owner: str | None) -> Media:
        """The same content by its digest: Redis keeps no images, and a queued job no file that may be deleted."""
        try:
            if media.file_id is not None:
                digest = self._files.get(media.file_id, owner=owner, param=param).digest
                self._artifacts.refresh(digest)
            elif media.artifact is not None:
                digest = media.artifact
                self._artifacts.refresh(digest)
            else:
                digest = self._artifacts.put(media.content()).digest
        except UnknownArtifact as error:
            raise UnknownArtifact(
                f"the content of `{param}` is gone from the artifact store; upload it again", param=param
            ) from error
        return Media(f"artifact-{digest}")

    def _check_training(self, spec: FineTuneSpec, owner: str | None) -> None:
        if is_adapter_id(spec.model):
            raise InvalidRequest("`model` names an adapter; training starts from a base model", param="model")
        tasks = self._catalogue.get(spec.model).tasks
        # An encoder's adapter brings the head for its task; the base is what makes embeddings.
        if not base_does(spec.task, tasks):
            _refuse_task(spec.model, RESIDENT_TASK[spec.task], tasks)
        training = self._training_file(spec.training_file, "training_file", owner)
        validation = None
        if spec.validation_file is not None:
            validation = self._training_file(spec.validation_file, "validation_file", owner)
        check_training_files(
            spec.task, training, validation, objective=spec.objective.type, on_broken_row=spec.on_broken_row
        )

    def _training_file(self, file_id: str, param: str, owner: str | None) -> Iterator[bytes]:
        file = self._files.get(file_id, owner=owner, param=param)
        if file.purpose != "fine-tune":
            raise InvalidRequest(
                f"`{param}` {file_id} was uploaded for {file.purpose!r}; upload it with purpose 'fine-tune'",
                param=param,
            )
        return self._files.content(file)


def stored_spec(spec: AnyInferenceSpec | FineTuneSpec | BatchSpec) -> dict[str, Any]:
    """What the record keeps: all that differs from the defaults, and which spec it is."""
    return {
        **spec.model_dump(mode="json", exclude_defaults=True),
        **spec.model_dump(mode="json", include={"kind", "task", "model"}),
    }


def _refuse_task(model: str, task: str, tasks: tuple[str, ...]) -> NoReturn:
    raise UnsupportedTask(f"model {model!r} does not do {task!r}; it does: {', '.join(tasks)}", param="task")
