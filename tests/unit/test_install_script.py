"""The set-up script's decisions: which torch, whether anything is to do, and what to advise when a step fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import install, torch_source

CPU_WHEEL = Path("/wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl")
CUDA_WHEEL = Path("/wheels/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl")


def choose(
    *,
    asked: str = "auto",
    installed: str | None = None,
    wheels: tuple[Path, ...] = (),
    has_gpu: bool = False,
    is_linux: bool = True,
    machine: str = "x86_64",
) -> tuple[str, ...]:
    """uv's arguments for a Linux machine without a GPU, unless told otherwise."""
    return torch_source.choose_torch(
        asked=asked,
        wanted="2.13.0",
        installed=installed,
        wheels=wheels,
        has_gpu=has_gpu,
        is_linux=is_linux,
        python_tag="cp311",
        machine=machine,
    ).arguments


def test_a_machine_without_a_gpu_takes_the_cpu_build() -> None:
    """The index's plain torch is a CUDA build of several GB: it is never taken where nothing can use it."""
    assert choose() == ("--torch-backend", "cpu")


def test_a_machine_with_a_gpu_takes_the_index_own_build() -> None:
    assert choose(has_gpu=True) == ()


def test_a_wheel_on_the_machine_comes_before_any_index() -> None:
    assert choose(wheels=(CPU_WHEEL,)) == ("--find-links", "/wheels")


def test_a_cpu_wheel_is_left_alone_where_a_gpu_waits() -> None:
    """2.13.0+cpu is newer than 2.13.0 to a resolver: only the folder's absence keeps it out."""
    assert choose(wheels=(CPU_WHEEL,), has_gpu=True) == ()
    assert choose(wheels=(CPU_WHEEL, CUDA_WHEEL), has_gpu=True) == ("--find-links", "/wheels")


@pytest.mark.parametrize(
    "name",
    [
        "torch-2.12.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl",
        "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl",
        "torch-2.13.0.tar.gz",
        "torch_geometric-2.13.0-py3-none-any.whl",
    ],
)
def test_a_wheel_of_another_version_python_or_machine_does_not_count(name: str) -> None:
    assert choose(wheels=(Path("/wheels") / name,)) == ("--torch-backend", "cpu")


@pytest.mark.parametrize(
    ("installed", "has_gpu"), [("2.13.0+cpu", False), ("2.13.0", False), ("2.13.0", True), ("2.13.0+cu130", True)]
)
def test_a_torch_that_runs_here_is_kept(installed: str, has_gpu: bool) -> None:
    """A CUDA build runs without a GPU too, so it is no reason to load the other one."""
    assert choose(installed=installed, has_gpu=has_gpu, wheels=(CPU_WHEEL,)) == ()


def test_a_cpu_build_is_replaced_when_a_gpu_appears() -> None:
    assert choose(installed="2.13.0+cpu", has_gpu=True) == ("--reinstall-package", "torch")


def test_an_older_torch_is_replaced() -> None:
    assert choose(installed="2.12.0+cpu") == ("--torch-backend", "cpu")


def test_what_was_asked_for_overrides_what_was_found() -> None:
    assert choose(asked="cpu", has_gpu=True) == ("--torch-backend", "cpu")
    assert choose(asked="cuda", wheels=(CPU_WHEEL,)) == ()
    assert choose(asked="cpu", installed="2.13.0") == ("--torch-backend", "cpu", "--reinstall-package", "torch")


def test_outside_linux_the_index_own_build_is_the_cpu_build() -> None:
    assert choose(is_linux=False, machine="arm64") == ()
    assert choose(is_linux=False, machine="arm64", installed="2.13.0") == ()


def test_the_folders_that_pip_knows_are_handed_on(tmp_path: Path) -> None:
    """Of pip's configuration and its variable, once each; addresses and folders that are gone drop out."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    configured = f"{one} https://example.invalid/wheels {tmp_path}/gone"
    assert torch_source.wheel_folders(configured, {"PIP_FIND_LINKS": f"file://{two} {one}"}) == [two, one]
    assert torch_source.wheel_folders("", {}) == []


def test_the_pin_of_a_package_is_read_without_its_marker() -> None:
    pins = "torchvision==1.0\ntorch==2.13.0 ; python_full_version < '3.15'\n    # via peft\n"
    assert install.pinned_version(pins, "torch") == "2.13.0"
    with pytest.raises(install.SetupError, match="pins no peft; run `make lock`"):
        install.pinned_version(pins, "peft")


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("error: failed to write: No space left on device (os error 28)", "The disk is full"),
        ("error: Request failed\n  Caused by: dns error: failed to lookup", "cannot be reached"),
        ("Failed to fetch `https://example.invalid/whl/cpu/torch/`\n  Caused by: dns error", "TORCH=cuda"),
        ("NewConnectionError(... Network is unreachable)\nERROR: No matching distribution found for uv", "reached"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("The virtual environment was not created: ensurepip is not available.", "python3-venv"),
        ("No solution found when resolving dependencies", "make lock"),
        ("something nobody has seen", "make clean install"),
    ],
)
def test_every_failure_says_what_to_do(output: str, advice: str) -> None:
    assert advice in install.advice_for(output)


def test_a_disk_that_is_too_small_stops_the_set_up_before_it_starts() -> None:
    install.check_disk(free=3 * 2**30, needed=3 * 2**30)
    with pytest.raises(install.SetupError, match=r"needs 3 GB of disk and 1\.0 GB are free"):
        install.check_disk(free=2**30, needed=3 * 2**30)


def test_a_failing_step_ends_the_set_up_with_its_name_and_advice(capfd: pytest.CaptureFixture[str]) -> None:
    """The command's own output is shown as it comes, and searched for the cause."""
    fails = "print('No space left on device'); raise SystemExit(3)"
    with pytest.raises(install.SetupError, match=r"`load` failed with exit status 3\. The disk is full"):
        install.run("load", [sys.executable, "-c", fails])
    assert "No space left on device" in capfd.readouterr().out


def test_a_change_of_what_was_read_or_of_the_machine_calls_for_a_new_set_up(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("one")
    first = install.fingerprint(tmp_path, ("cpu",))
    assert install.fingerprint(tmp_path, ("cpu",)) == first
    assert install.fingerprint(tmp_path, ("gpu",)) != first
    (tmp_path / "pyproject.toml").write_text("two")
    assert install.fingerprint(tmp_path, ("cpu",)) != first


def test_a_set_up_holds_only_while_what_it_made_is_there(tmp_path: Path) -> None:
    """The stamp alone is no proof: models that were deleted, or a Python that was removed, are made again."""
    venv, models = tmp_path / ".venv", tmp_path / "models"
    stamp = venv / "stamp"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    stamp.write_text("hash")
    assert not install.is_current(stamp, "hash", models)
    models.mkdir()
    (models / "a-model").touch()
    assert install.is_current(stamp, "hash", models)
    assert not install.is_current(stamp, "another", models)
    (venv / "bin" / "python").unlink()
    assert not install.is_current(stamp, "hash", models)


def test_an_old_python_is_told_what_it_needs() -> None:
    """The check is the script's first act, so it is tried on a script that believes itself to be on Python 3.9."""
    old = "import sys; sys.version_info = (3, 9, 2); from scripts.install import main; sys.exit(main())"
    answer = subprocess.run(
        [sys.executable, "-c", old], cwd=install.ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "needs Python 3.11 or newer" in answer.stderr
    assert "make install PYTHON=python3.11" in answer.stderr


def test_models_lie_where_the_settings_say() -> None:
    """The script cannot import the settings before they are installed; here it can be held to them."""
    from tandem.settings import Settings

    assert install.models_folder({}) == Settings.model_fields["models_dir"].get_default(call_default_factory=True)
    assert install.models_folder({"TANDEM_MODELS_DIR": "/models"}) == Path("/models")
