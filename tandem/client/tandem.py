"""`Tandem`: the service as a Python object, for programs that produce jobs."""

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from tandem.adapter_archive import pack
from tandem.client.batch_calls import BatchCalls
from tandem.client.endpoint import Endpoint
from tandem.client.records import Adapter, JobHandle, Model, UploadedFile
from tandem.client.training import TrainingOptions, training_fields
from tandem.client.transport import Transport
from tandem.errors import InvalidRequest
from tandem.specs.media import Purpose

TIMEOUT_SECONDS = 60.0
"""One request's limit; waiting for a job has its own. An upload of 512 MB passes where the disk is not the limit."""
Rows = Iterable[Mapping[str, Any]]
"""Training rows: `{"messages": […]}` or `{"prompt": …, "completion": …}`; for heads `{"text": …, "label": …}`,
`{"tokens": […], "tags": […]}` or `{"question": …, "context": …, "answers": {"text": […], "answer_start": […]}}`."""
DataSet = Path | str | UploadedFile | Rows
"""A file's path, an uploaded file or its id, or rows."""
ADAPTER_PURPOSE: Purpose = "adapter"
FILE_ID = re.compile(r"file-[0-9a-f]{24}")


class Tandem(BatchCalls):
    """A client of one service. Thread-safe; close it, or use it in a `with`, to give its connections back.

    Every call may raise ServiceUnreachable, QueueUnavailable (after retries) and AuthenticationFailed; its own errors
    stand with it. All are classes of `tandem.errors`.
    """

    def __init__(
        self, base_url: str | None = None, api_key: str | None = None, *, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        """Address and key are taken from TANDEM_URL and TANDEM_API_KEY, or from the `tandem up` that runs in this
        folder. `timeout` is one request's, in seconds. Raises ConfigurationError if there is nothing to be found."""
        self._transport = Transport(Endpoint.find(base_url, api_key), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    @property
    def url(self) -> str:
        """The service's address, without `/v1`."""
        return self._transport.endpoint.url

    @property
    def api_key(self) -> str:
        return self._transport.endpoint.api_key

    # Files and training

    def upload(self, source: Path | str | Rows, purpose: Purpose = "fine-tune") -> UploadedFile:
        """Upload a file, or rows as a file of JSON lines. Raises PayloadTooLarge, InvalidRequest."""
        if isinstance(source, (str, Path)):
            path = Path(source)
            try:
                content = path.open("rb")
            except OSError as error:
                raise InvalidRequest(f"the file {path} cannot be read: {error.strerror}", param="file") from error
            with content:
                return UploadedFile.read(self._upload(path.name, content, purpose).json())
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in source)
        return UploadedFile.read(self._upload("rows.jsonl", io.BytesIO(lines.encode()), purpose).json())

    @overload
    def finetune(
        self,
        model: str,
        training: DataSet,
        validation: DataSet | None = None,
        *,
        wait: Literal[False] = False,
        **options: Unpack[TrainingOptions],
    ) -> JobHandle: ...
    @overload
    def finetune(
        self,
        model: str,
        training: DataSet,
        validation: DataSet | None = None,
        *,
        wait: Literal[True],
        **options: Unpack[TrainingOptions],
    ) -> dict[str, Any]: ...
    def finetune(
        self,
        model: str,
        training: DataSet,
        validation: DataSet | None = None,
        *,
        wait: bool = False,
        **options: Unpack[TrainingOptions],
    ) -> JobHandle | dict[str, Any]:
        """Train an adapter of `model`; with `wait`, return the result, which names it: `{"adapter", "metrics", …}`.

        A data set is a file's path, an uploaded file, or rows, which are uploaded first. `options` are those of
        `TrainingOptions` (task, method, hyperparameters, …) and of `submit` (priority, deadline_seconds, …).

        Raises InvalidTrainingData naming the lines, InvalidRequest naming the field, UnknownModel, UnknownFile,
        PayloadTooLarge; and what `wait` raises.
        """
        spec: dict[str, Any] = {"kind": "finetune", "model": model, "training_file": self._file_id(training)}
        if validation is not None:
            spec["validation_file"] = self._file_id(validation)
        spec |= training_fields(options)
        job = self._submit(spec, None)
        return dict(self.wait(job)) if wait else job

    # Models and adapters

    def models(self) -> list[Model]:
        """What a job may name as its model: the catalogue's bases, and adapters."""
        return [Model.read(record) for record in self._read("GET", "/models")["data"]]

    def adapters(self) -> list[Adapter]:
        """Every adapter, newest first."""
        return [Adapter.read(record) for record in self._read("GET", "/adapters")["data"]]

    def adapter(self, adapter_id: str) -> Adapter:
        """Raises UnknownAdapter."""
        return Adapter.read(self._read("GET", f"/adapters/{adapter_id}"))

    def add_adapter(self, source: Path | str, base: str, *, suffix: str | None = None) -> Adapter:
        """Serve an adapter that was trained elsewhere: a folder that PEFT's `save_pretrained` wrote, or a zip file of
        one. `base` is the catalogue name of the model that it was trained on; `suffix` a word of yours in its id.

        The same content is the same adapter, however often it is added.

        Raises InvalidRequest naming what is at fault in the files, UnsupportedTask, AdapterMismatch if it was trained
        on another model, UnknownModel, PayloadTooLarge, Conflict.
        """
        path = Path(source)
        if path.is_dir():
            with tempfile.TemporaryFile() as archive:
                pack(path, archive)
                archive.seek(0)
                file = UploadedFile.read(self._upload(f"{path.name}.zip", archive, ADAPTER_PURPOSE).json())
        else:
            file = self.upload(path, ADAPTER_PURPOSE)
        asked = {"file": file.id, "base": base} | ({} if suffix is None else {"suffix": suffix})
        try:
            return Adapter.read(self._read("POST", "/adapters", json=asked))
        finally:
            # The adapter has files of its own, and what was refused is of no use.
            self._transport.request("DELETE", f"/files/{file.id}", repeatable=False)

    def download_adapter(self, adapter_id: str, folder: Path | str) -> Path:
        """Write the adapter's PEFT folder, which `PeftModel.from_pretrained` loads, and return it.

        Raises UnknownAdapter; InvalidRequest if the folder cannot be written.
        """
        archive = self._transport.request("GET", f"/adapters/{adapter_id}/download").content
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(io.BytesIO(archive)) as content:
                content.extractall(target)  # it strips absolute paths and `..` by itself
        except OSError as error:
            raise InvalidRequest(
                f"the folder {target} cannot be written: {error.strerror}", param="folder"
            ) from error
        return target

    def pin_adapter(self, adapter_id: str) -> Adapter:
        """Let an adapter keep its slot on every worker, from its first use there on; an operator's call.

        Raises InvalidRequest where all slots but one are taken by pinned ones, UnknownAdapter.
        """
        return Adapter.read(self._read("POST", f"/adapters/{adapter_id}/pin"))

    def unpin_adapter(self, adapter_id: str) -> Adapter:
        """Let it leave its slot as others do. Raises UnknownAdapter."""
        return Adapter.read(self._read("POST", f"/adapters/{adapter_id}/unpin"))

    def delete_adapter(self, adapter_id: str) -> None:
        """Withdraw an adapter: no new job may name it. Raises UnknownAdapter."""
        self._transport.request("DELETE", f"/adapters/{adapter_id}", repeatable=False)

    # Requests

    def _file_id(self, data: DataSet) -> str:
        if isinstance(data, UploadedFile):
            return data.id
        if isinstance(data, str) and FILE_ID.fullmatch(data):
            return data
        return self.upload(data).id
