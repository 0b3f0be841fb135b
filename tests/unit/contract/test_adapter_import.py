"""An adapter trained elsewhere: it must fit its base, is published like any other, and is one however often sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.adapter_contents import AdapterContents, VirtualTokens
from tandem.adapter_import import AdapterUpload, check_base, import_adapter
from tandem.adapter_layers import LayerChange
from tandem.adapters import AdapterManifest
from tandem.artifact_collection import references_of
from tandem.catalogue import CatalogueEntry
from tandem.errors import (
    AdapterMismatch,
    Conflict,
    InvalidModel,
    InvalidRequest,
    UnknownAdapter,
    UnknownFile,
    UnknownModel,
    UnsupportedTask,
)
from tandem.services import Services
from tandem.settings import Settings
from tandem.specs.media import Purpose
from tests.unit.contract.peft_folders import (
    BASE_CONFIG,
    BASE_SHAPES,
    LORA_CONFIG,
    Q_PROJ,
    adapter_files,
    safetensors,
    write_base,
    zipped,
)

LIMIT = 1024 * 1024
Q = "model.layers.0.self_attn.q_proj"


def base_at(folder: Path, *tasks: str) -> CatalogueEntry:
    return CatalogueEntry.model_validate({"name": "base", "folder": folder, "tasks": tasks or ("text-generation",)})


def lora(path: str, change: LayerChange) -> AdapterContents:
    return AdapterContents("LORA", "text-generation", {path: change})


class TestTheBase:
    """Shapes are compared with those in the base's own files."""

    def test_an_adapter_that_fits(self, tmp_path: Path) -> None:
        entry = base_at(write_base(tmp_path))
        assert check_base(lora(Q, LayerChange(16, 16, 4)), entry) == "files and base"
        assert check_base(lora(Q, LayerChange(None, 16)), entry) == "files and base"

    def test_a_class_may_put_other_names_before_its_layers(self, tmp_path: Path) -> None:
        shapes = {"layers.0.self_attn.q_proj.weight": (16, 8)}
        entry = base_at(write_base(tmp_path, shapes))
        assert check_base(lora(f"language_model.{Q}", LayerChange(8, 16, 4)), entry) == "files and base"

    def test_layers_that_keep_their_weights_transposed(self, tmp_path: Path) -> None:
        shapes = {"h.0.attn.c_attn.weight": (16, 48)}
        entry = base_at(write_base(tmp_path, shapes))
        layers = {"transformer.h.0.attn.c_attn": LayerChange(16, 48, 4)}
        assert check_base(AdapterContents("LORA", "text-generation", layers), entry) == "files and base"

    @pytest.mark.parametrize(
        ("path", "change", "reason"),
        [
            (
                Q,
                LayerChange(32, 16, 4),
                r"its change of model.*q_proj is for weights \[16, 32\], the base has \[16, 16\]",
            ),
            (Q, LayerChange(None, 32), r"is for weights \[32, any\]"),
            ("model.layers.1.self_attn.q_proj", LayerChange(16, 16, 4), "which the base does not have"),
            ("transformer.h.0.attn.c_attn", LayerChange(16, 48, 4), "which the base does not have"),
            ("xmodel.xlayers.0.self_attn.q_proj", LayerChange(16, 16, 4), "which the base does not have"),
        ],
    )
    def test_one_of_another_base_is_refused(
        self, path: str, change: LayerChange, reason: str, tmp_path: Path
    ) -> None:
        with pytest.raises(AdapterMismatch, match=reason) as refused:
            check_base(lora(path, change), base_at(write_base(tmp_path)))
        assert refused.value.param == "base"

    @pytest.mark.parametrize(
        ("peft_type", "width"), [("PROMPT_TUNING", 16), ("P_TUNING", 16), ("PREFIX_TUNING", 2 * 1 * 2 * 4)]
    )
    def test_virtual_tokens_are_as_wide_as_the_bases_states(self, peft_type: str, width: int, tmp_path: Path) -> None:
        entry = base_at(write_base(tmp_path))
        fits = AdapterContents(peft_type, "text-generation", virtual_tokens=VirtualTokens(3, width))
        assert check_base(fits, entry) == "files and base"
        wider = AdapterContents(peft_type, "text-generation", virtual_tokens=VirtualTokens(3, width + 1))
        with pytest.raises(AdapterMismatch, match=f"have {width + 1} numbers each, the base takes {width}"):
            check_base(wider, entry)

    def test_a_base_in_several_files(self, tmp_path: Path) -> None:
        folder = write_base(tmp_path)
        (folder / "model.safetensors").unlink()
        halves = {"a.safetensors": list(BASE_SHAPES)[:1], "b.safetensors": list(BASE_SHAPES)[1:]}
        for file, names in halves.items():
            (folder / file).write_bytes(safetensors({name: BASE_SHAPES[name] for name in names}))
        places = ", ".join(f'"{name}": "{file}"' for file, names in halves.items() for name in names)
        (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{places}}}}}')
        contents = lora(Q, LayerChange(32, 16, 4))
        with pytest.raises(AdapterMismatch):
            check_base(contents, base_at(folder))
        (folder / "b.safetensors").unlink()
        assert check_base(contents, base_at(folder)) == "files"

    def test_a_base_that_is_not_on_this_machine_is_left_to_the_worker(self, tmp_path: Path) -> None:
        hub = CatalogueEntry(name="base", hub="someone/base", tasks=("text-generation",))
        (tmp_path / "without-weights").mkdir()
        (tmp_path / "without-weights" / "config.json").write_text("{}")
        for entry in (hub, base_at(tmp_path / "nowhere"), base_at(tmp_path / "without-weights")):
            assert check_base(lora(Q, LayerChange(32, 16, 4)), entry) == "files"

    def test_a_broken_base_is_not_the_adapters_fault(self, tmp_path: Path) -> None:
        folder = write_base(tmp_path)
        (folder / "model.safetensors").write_bytes(b"broken")
        with pytest.raises(InvalidModel, match=r"model\.safetensors of the base .* is broken: it ends within"):
            check_base(lora(Q, LayerChange(16, 16, 4)), base_at(folder))

    def test_a_base_for_other_tasks(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedTask, match="its base must do 'text-generation'; 'base' does: fill-mask"):
            check_base(lora(Q, LayerChange(16, 16, 4)), base_at(write_base(tmp_path), "fill-mask"))

    def test_a_head_for_another_architecture(self, tmp_path: Path) -> None:
        contents = AdapterContents("LORA", "text-classification", labels=("a", "b"), model_type="bert")
        folder = write_base(tmp_path)
        with pytest.raises(AdapterMismatch, match="says bert, the base is a llama"):
            check_base(contents, base_at(folder, "feature-extraction"))
        write_base(tmp_path, config=BASE_CONFIG | {"model_type": "bert"})
        assert check_base(contents, base_at(folder, "feature-extraction")) == "files and base"


@pytest.fixture
def services(valkey_url: str, tmp_path: Path) -> Iterator[Services]:
    """Stores whose catalogue has one base, of zeros."""
    base = write_base(tmp_path / "base")
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(f'[[models]]\nname = "base"\nfolder = "{base}"\ntasks = ["text-generation"]\n')
    settings = Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}/artifacts", catalogue=catalogue)
    services = Services.connect(settings)
    yield services
    services.jobs.close()


def upload(services: Services, content: bytes, purpose: Purpose = "adapter") -> str:
    return services.files.create([content], filename="a.zip", purpose=purpose, owner="me", limit=LIMIT).id


def imported(services: Services, content: bytes, *, owner: str = "me", **asked: Any) -> AdapterManifest:
    wanted = AdapterUpload(file=upload(services, content), **{"base": "base", **asked})
    return import_adapter(services, wanted, owner=owner, limit=LIMIT)


class TestPublishing:
    """What has been checked is an adapter like those that jobs publish."""

    def test_it_has_the_files_and_a_manifest(self, services: Services, tmp_path: Path) -> None:
        files = adapter_files()
        manifest = imported(services, zipped(files), suffix="theirs")
        assert manifest.id.startswith("ft:base:me:theirs:")
        assert (manifest.owner, manifest.base, manifest.task) == ("me", "base", "text-generation")
        assert (manifest.job_id, manifest.training_data, manifest.checked) == (None, None, "files and base")
        assert manifest.method.model_dump() == {
            "type": "imported",
            "peft_type": "LORA",
            "r": 4,
            "num_virtual_tokens": None,
            "target_modules": ("q_proj",),
        }
        assert services.adapters.list() == [manifest]
        services.adapters.fetch(manifest, tmp_path / "fetched")
        fetched = {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()}
        assert fetched == {name: content for name, content in files.items() if name != "README.md"}

    def test_the_same_content_is_the_same_adapter(self, services: Services) -> None:
        first = imported(services, zipped(adapter_files()))
        packed_otherwise = zipped({f"folder/{name}": content for name, content in adapter_files().items()})
        assert imported(services, packed_otherwise) == first
        other = imported(services, zipped(adapter_files(LORA_CONFIG | {"lora_alpha": 9})))
        theirs = imported(services, zipped(adapter_files()), owner="you")
        assert len({first.id, other.id, theirs.id}) == 3
        assert len(services.adapters.list()) == 3

    def test_another_content_never_takes_an_adapters_id(
        self, services: Services, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tandem.adapter_import._number", lambda _files: "01234567")
        first = imported(services, zipped(adapter_files()))
        with pytest.raises(Conflict, match="has other content; import it with another suffix"):
            imported(services, zipped(adapter_files(LORA_CONFIG | {"lora_alpha": 9})))
        assert services.adapters.list() == [first]

    def test_a_deleted_one_can_come_back(self, services: Services) -> None:
        first = imported(services, zipped(adapter_files()))
        services.adapters.delete(first.id)
        with pytest.raises(UnknownAdapter):
            services.adapters.get(first.id)
        assert imported(services, zipped(adapter_files())).id == first.id
        assert services.adapters.get(first.id).files == first.files

    def test_its_files_are_referred_to_and_the_archive_no_more(self, services: Services) -> None:
        file = services.files.get(upload(services, zipped(adapter_files())))
        manifest = import_adapter(services, AdapterUpload(file=file.id, base="base"), owner="me", limit=LIMIT)
        services.files.delete(file.id)
        live = set(references_of(services.jobs, services.files, services.adapters)())
        assert live == set(manifest.files.values())
        assert file.digest not in live

    def test_what_is_refused_leaves_nothing(self, services: Services) -> None:
        wide = {f"{Q_PROJ}.lora_A.weight": (4, 32), f"{Q_PROJ}.lora_B.weight": (32, 4)}
        for content, error in (
            (b"no zip file", InvalidRequest),
            (zipped(adapter_files(LORA_CONFIG | {"peft_type": "VERA"})), InvalidRequest),
            (zipped(adapter_files(shapes=wide)), AdapterMismatch),
        ):
            with pytest.raises(error):
                imported(services, content)
        assert services.adapters.list() == []
        assert list(services.adapters.artifact_references()) == []

    def test_a_file_must_be_there_and_be_meant_as_an_adapter(self, services: Services) -> None:
        wrong = upload(services, zipped(adapter_files()), purpose="user_data")
        with pytest.raises(InvalidRequest, match="was uploaded for 'user_data'; upload it with purpose 'adapter'"):
            import_adapter(services, AdapterUpload(file=wrong, base="base"), owner="me", limit=LIMIT)
        with pytest.raises(UnknownFile):
            import_adapter(services, AdapterUpload(file=f"file-{'0' * 24}", base="base"), owner="me", limit=LIMIT)
        with pytest.raises(UnknownModel, match="no model 'other'"):
            imported(services, zipped(adapter_files()), base="other")

    def test_weights_above_the_limit_are_refused_unpacked(self, services: Services) -> None:
        content = zipped(adapter_files(shapes={f"{Q_PROJ}.lora_A.weight": (4, 100_000)}))
        assert len(content) < LIMIT
        with pytest.raises(InvalidRequest, match=rf"the limit is {LIMIT}"):
            imported(services, content)
