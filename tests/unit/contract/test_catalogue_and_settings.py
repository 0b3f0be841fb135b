"""What a person writes by hand, the catalogue and the settings, is refused by name when it is wrong."""

from pathlib import Path

import pytest

from tandem.catalogue import Catalogue
from tandem.errors import ConfigurationError, UnknownModel
from tandem.settings import ApiSettings, Settings, WorkerSettings


def _load(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "models.toml"
    path.write_text(text)
    return Catalogue.load(Settings(catalogue=path, models_dir=tmp_path / "models"))


def test_the_default_catalogue_names_the_wheels_models() -> None:
    names = [entry.name for entry in Catalogue.load(Settings()).entries()]
    assert names == ["smollm2-135m-instruct", "all-minilm-l6-v2", "minilm-topics"]


def test_relative_folders_lie_in_the_models_folder(tmp_path: Path) -> None:
    catalogue = _load(tmp_path, '[[models]]\nname = "a"\nfolder = "a-v1"\ntasks = ["fill-mask"]')
    assert catalogue.get("a").folder == tmp_path / "models" / "a-v1"


def test_an_unknown_model_is_answered_with_those_there_are(tmp_path: Path) -> None:
    catalogue = _load(tmp_path, '[[models]]\nname = "a"\nhub = "org/a"\ntasks = ["fill-mask"]')
    with pytest.raises(UnknownModel, match="no model 'b' is in the catalogue; it has: a"):
        catalogue.get("b")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[models]\n", "models.toml"),
        ('[[models]]\nname = "a"\ntasks = ["fill-mask"]', "give either `folder` or `hub`"),
        ('[[models]]\nname = "a"\nfolder = "x"\nhub = "y"\ntasks = ["fill-mask"]', "give either `folder` or `hub`"),
        ('[[models]]\nname = "a"\nfolder = "x"\ntasks = ["sing"]', "Input should be 'text-generation'"),
        (
            '[[models]]\nname = "a"\nfolder = "x"\ntasks = ["fill-mask"]\ndtyp = "auto"',
            "Extra inputs are not permitted",
        ),
    ],
)
def test_a_faulty_catalogue_stops_the_start_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    assert fault in caught.value.message
    assert caught.value.param == "TANDEM_CATALOGUE"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_ROLES", "finetune")
    monkeypatch.setenv("TANDEM_LEASE_SECONDS", "3")
    settings = WorkerSettings.read()
    assert (settings.roles, settings.lease_seconds) == (("finetune",), 3.0)


def test_a_bad_setting_is_refused_by_its_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_THREADS", "many")
    with pytest.raises(ConfigurationError, match=r"TANDEM_THREADS: .* 'many'"):
        WorkerSettings.read()


def test_the_api_does_not_start_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="TANDEM_API_KEY"):
        ApiSettings.read()


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("", ()),
        (" https://a.example , http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ("*", ("*",)),
    ],
)
def test_origins_are_a_list_with_commas(
    monkeypatch: pytest.MonkeyPatch, value: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TANDEM_API_KEY", "key")
    monkeypatch.setenv("TANDEM_CORS_ORIGINS", value)
    assert ApiSettings.read().cors_origins == origins


@pytest.mark.parametrize("value", ["app.example.com", "https://app.example.com/", "ftp://a"])
def test_an_origin_that_no_browser_sends_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TANDEM_API_KEY", "key")
    monkeypatch.setenv("TANDEM_CORS_ORIGINS", value)
    with pytest.raises(ConfigurationError, match="is no origin"):
        ApiSettings.read()


def test_settings_that_do_not_fit_together_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence that decodes takes one token of a step."""
    monkeypatch.setenv("TANDEM_SEQUENCE_SLOTS", "64")
    monkeypatch.setenv("TANDEM_STEP_TOKENS", "32")
    with pytest.raises(ConfigurationError, match="TANDEM_STEP_TOKENS is 32, below TANDEM_SEQUENCE_SLOTS, 64"):
        WorkerSettings.read()
