"""Keys with owners: what the file may hold, how it is edited, and that an edit counts at once."""

import logging
import stat
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from tandem.api_keys import ApiKey, ApiKeys, digest_of
from tandem.api_keys_file import KeysFile
from tandem.cli import app
from tandem.errors import ConfigurationError, Conflict, NotFound
from tandem.settings import ApiSettings

DIGEST = "a" * 64


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.toml")


def load(file: KeysFile, single: str | None = None) -> ApiKeys:
    key = None if single is None else SecretStr(single)
    return ApiKeys.load(ApiSettings(api_key=key, api_keys_file=file.path))


class TestReading:
    def test_a_key_is_known_by_its_digest(self, file: KeysFile) -> None:
        file.path.write_text(
            f'[[keys]]\nname = "team-a"\nsha256 = "{digest_of("secret")}"\nweight = 2\nmax_queued = 10000\n'
        )
        assert load(file).identify("secret") == ApiKey(owner="team-a", weight=2.0, max_queued=10_000)
        assert load(file).identify("Secret") is None

    def test_the_single_key_stays_beside_the_file(self, file: KeysFile) -> None:
        key = file.add("team-a")
        keys = load(file, single="one-key")
        assert keys.identify("one-key") == ApiKey(owner="default", operator=True, weight=1.0, max_queued=None)
        assert keys.identify(key) == ApiKey(owner="team-a")

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("[[keys]\n", "keys.toml"),
            ("[[key]]\n", "Extra inputs are not permitted"),
            (f'[[keys]]\nname = "A"\nsha256 = "{DIGEST}"', "keys.0.name: String should match pattern"),
            (f'[[keys]]\nname = "-a"\nsha256 = "{DIGEST}"', "keys.0.name: String should match pattern"),
            (f'[[keys]]\nname = "{"a" * 41}"\nsha256 = "{DIGEST}"', "keys.0.name: String should match pattern"),
            ('[[keys]]\nname = "a"', "keys.0.sha256: Field required"),
            ('[[keys]]\nname = "a"\nsha256 = "the-key-itself"', "keys.0.sha256: String should match pattern"),
            (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nweight = 0', "keys.0.weight: Input should be greater"),
            (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nweight = inf', "keys.0.weight: Input should be"),
            (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nmax_queued = 0', "keys.0.max_queued: Input should be"),
            (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\nmax_queue = 1', "keys.0.max_queue: Extra inputs"),
            (
                f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\n[[keys]]\nname = "a"\nsha256 = "{"b" * 64}"',
                "two keys have the name 'a'",
            ),
            (
                f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\n[[keys]]\nname = "b"\nsha256 = "{DIGEST}"',
                "two keys have the sha256",
            ),
            (
                f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\n'
                f'[[keys]]\nname = "b"\nowner = "a"\nsha256 = "{"b" * 64}"\nweight = 2',
                "the keys of owner 'a' must have one `weight`",
            ),
            (f'[[keys]]\nname = "a"\nsha256 = "{DIGEST}"\noperator = "yes"', "keys.0.operator: Input should be"),
        ],
    )
    def test_a_faulty_file_stops_the_start_with_its_place(self, file: KeysFile, text: str, fault: str) -> None:
        file.path.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            load(file)
        assert fault in caught.value.message
        assert caught.value.param == "TANDEM_API_KEYS_FILE"

    def test_several_keys_may_have_one_owner_and_a_key_may_be_an_operators(self, file: KeysFile) -> None:
        """A key reaches what its owner's keys have made; an operator's reaches everything."""
        ann, bob = file.add("ann", owner="team"), file.add("bob", owner="team", operator=True)
        keys = load(file)
        assert keys.identify(ann) == ApiKey(owner="team")
        assert keys.identify(bob) == ApiKey(owner="team", operator=True)
        assert (ApiKey(owner="team").reach, ApiKey(owner="team", operator=True).reach) == ("team", None)

    def test_a_file_without_keys_does_when_there_is_the_single_one(self, file: KeysFile) -> None:
        file.path.write_text("")
        assert load(file, single="one-key").identify("one-key") == ApiKey(owner="default", operator=True)
        with pytest.raises(ConfigurationError, match="nobody could get in"):
            load(file)

    def test_a_missing_file_stops_the_start(self, file: KeysFile) -> None:
        with pytest.raises(ConfigurationError, match="cannot be read"):
            load(file, single="one-key")

    def test_the_single_key_and_the_file_must_not_name_one_owner_or_one_key_twice(self, file: KeysFile) -> None:
        file.path.write_text(f'[[keys]]\nname = "default"\nsha256 = "{digest_of("other")}"\n')
        assert load(file).identify("other") == ApiKey(owner="default")
        with pytest.raises(ConfigurationError, match="'default' is the owner of TANDEM_API_KEY"):
            load(file, single="one-key")
        file.path.write_text(f'[[keys]]\nname = "a"\nsha256 = "{digest_of("one-key")}"\n')
        with pytest.raises(ConfigurationError, match="one of its keys is TANDEM_API_KEY"):
            load(file, single="one-key")


class TestSettings:
    @pytest.mark.parametrize("value", ["", "  "])
    def test_an_empty_variable_is_one_that_is_not_set(
        self, monkeypatch: pytest.MonkeyPatch, file: KeysFile, value: str
    ) -> None:
        """An empty key would open the door to `Authorization: Bearer`."""
        monkeypatch.setenv("TANDEM_API_KEY", value)
        monkeypatch.setenv("TANDEM_API_KEYS_FILE", value)
        with pytest.raises(ConfigurationError, match="TANDEM_API_KEY is not set, nor TANDEM_API_KEYS_FILE"):
            ApiSettings.read()
        monkeypatch.setenv("TANDEM_API_KEYS_FILE", str(file.path))
        assert ApiSettings.read().api_key is None


class TestChanges:
    def test_a_new_key_and_a_revoked_one_count_at_once(self, file: KeysFile) -> None:
        first = file.add("a")
        keys = load(file)
        second = file.add("b")
        assert keys.identify(second) == ApiKey(owner="b")
        file.revoke("a")
        assert keys.identify(first) is None
        file.revoke("b")
        assert keys.identify(second) is None

    def test_an_edit_in_place_counts_too(self, file: KeysFile) -> None:
        key = file.add("a")
        keys = load(file)
        file.path.write_text(file.path.read_text().replace("weight = 1.0", "weight = 3.25"))
        found = keys.identify(key)
        assert found is not None
        assert found.weight == 3.25

    @pytest.mark.parametrize("text", ["[[keys]\n", None])
    def test_a_file_that_turns_faulty_or_vanishes_changes_nothing_and_is_logged_once(
        self, file: KeysFile, caplog: pytest.LogCaptureFixture, text: str | None
    ) -> None:
        key = file.add("a")
        keys, good = load(file), file.path.read_text()
        if text is None:
            file.path.unlink()
        else:
            file.path.write_text(text)
        with caplog.at_level(logging.ERROR):
            assert keys.identify(key) == keys.identify(key) == ApiKey(owner="a")
        assert [record.message for record in caplog.records] == [caplog.records[0].message]
        assert "the API keys stay as they were" in caplog.text
        file.path.write_text(good)
        file.revoke("a")
        assert keys.identify(key) is None


class TestEditing:
    def test_the_file_is_its_owners_alone_and_holds_no_key(self, file: KeysFile) -> None:
        key = file.add("a")
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert key not in file.path.read_text()
        assert [path.name for path in file.path.parent.iterdir()] == ["keys.toml"]

    def test_a_mode_that_a_person_chose_stays(self, file: KeysFile) -> None:
        file.add("a")
        file.path.chmod(0o640)
        file.add("b")
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o640

    def test_a_link_stays_one(self, file: KeysFile, tmp_path: Path) -> None:
        file.add("a")
        link = tmp_path / "link.toml"
        link.symlink_to(file.path)
        KeysFile(link).add("b")
        assert link.is_symlink()
        assert [entry.name for entry in file.entries()] == ["a", "b"]

    def test_comments_and_the_other_entries_stay(self, file: KeysFile) -> None:
        table = '[[keys]]\nname = "{0}"\nsha256 = "{1}"\n'
        a, b, c = (table.format(name, name * 64) for name in "abc")
        file.path.write_text(f"# the teams\n\n{a}\n# of b\n{b}\n# of c\n{c}")
        file.revoke("b")
        assert file.path.read_text() == f"# the teams\n\n{a}\n# of b\n# of c\n{c}"
        file.revoke("c")
        assert file.path.read_text() == f"# the teams\n\n{a}\n# of b\n# of c\n"
        file.add("d")
        assert [entry.name for entry in file.entries()] == ["a", "d"]

    def test_a_name_is_given_once(self, file: KeysFile) -> None:
        file.add("a")
        with pytest.raises(Conflict, match="has a key 'a' already; revoke it first"):
            file.add("a")

    def test_revoking_what_is_not_there_is_an_error(self, file: KeysFile) -> None:
        with pytest.raises(NotFound, match="has no key 'a'"):
            file.revoke("a")

    def test_a_file_in_another_style_is_left_alone(self, file: KeysFile) -> None:
        """Rather than guess at a text that it does not know, it says so."""
        text = f'keys = [{{name = "a", sha256 = "{DIGEST}"}}]\n'
        file.path.write_text(text)
        with pytest.raises(ConfigurationError, match="remove 'a' by hand"):
            file.revoke("a")
        with pytest.raises(ConfigurationError):
            file.add("b")
        assert file.path.read_text() == text

    def test_a_folder_that_cannot_be_written_is_named(self, file: KeysFile) -> None:
        with pytest.raises(ConfigurationError, match="the folder of the keys file cannot be opened"):
            KeysFile(file.path / "none" / "keys.toml").add("a")

    def test_many_that_edit_at_once_lose_nothing(self, file: KeysFile) -> None:
        names = [f"team-{letter}" for letter in "abcdefgh"]
        threads = [threading.Thread(target=KeysFile(file.path).add, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(entry.name for entry in file.entries()) == names


class TestCommand:
    def test_new_prints_the_key_once_and_list_and_revoke_follow(self, file: KeysFile) -> None:
        run = CliRunner(env={"TANDEM_API_KEYS_FILE": str(file.path)})
        options = ["--owner", "team-a", "--operator", "--weight", "2.5", "--max-queued", "7"]
        made = run.invoke(app, ["keys", "new", "ann", *options])
        assert made.exit_code == 0, made.output
        known = ApiKey(owner="team-a", operator=True, weight=2.5, max_queued=7)
        assert load(file).identify(made.stdout.strip()) == known
        listed = run.invoke(app, ["keys", "list"]).stdout
        assert ["ann", "team-a", "yes", "2.5", "7"] in [line.split() for line in listed.splitlines()]
        assert made.stdout.strip() not in listed
        assert run.invoke(app, ["keys", "revoke", "ann"]).exit_code == 0
        assert run.invoke(app, ["keys", "list"]).stdout.startswith("no keys yet")

    @pytest.mark.parametrize(
        ("arguments", "fault"),
        [(["--weight", "0"], "--weight"), (["--max-queued", "0"], "--max-queued"), ([], "--file")],
    )
    def test_a_bad_option_is_named(self, arguments: list[str], fault: str) -> None:
        ended = CliRunner(env={"TANDEM_API_KEYS_FILE": ""}).invoke(app, ["keys", "new", "team-a", *arguments])
        assert ended.exit_code == 2
        assert fault in ended.stderr

    def test_a_bad_name_is_an_error_of_ours(self, file: KeysFile) -> None:
        with pytest.raises(ConfigurationError, match=r"name: String should match pattern .* 'Team A'"):
            file.add("Team A")
        assert not file.path.exists()
