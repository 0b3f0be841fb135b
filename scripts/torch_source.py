"""Where torch comes from on this machine: the decision alone, made from facts that are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CPU_BYTES = 3 * 2**30
"""Free disk that a CPU set-up needs: measured 1.5 GB of `.venv` and 0.7 GB of models, the rest is margin."""
CUDA_BYTES = 12 * 2**30
"""With a CUDA build of torch, whose libraries take about 5 GB unpacked and 3 GB in the download cache."""


@dataclass(frozen=True)
class TorchSource:
    """Where torch comes from: uv's arguments that say so, and the reason in words."""

    arguments: tuple[str, ...]
    reason: str
    needed_bytes: int
    """Free disk that the set-up needs with it; 0 where it is installed already."""


def choose_torch(
    *,
    asked: str,
    wanted: str,
    installed: str | None,
    wheels: Iterable[Path],
    has_gpu: bool,
    is_linux: bool,
    python_tag: str,
    machine: str,
) -> TorchSource:
    """Decides where torch comes from. Nothing here looks at the machine: the facts are passed in.

    `asked` is `auto`, `cpu` or `cuda`; `wanted` the pinned version; `installed` the version in `.venv`, if any;
    `wheels` the files of the folders that pip's configuration names; `python_tag` such as `cp311`; `machine`
    such as `x86_64`.
    """
    wants_cuda = has_gpu if asked == "auto" else asked == "cuda"
    replace: tuple[str, ...] = ()
    if installed is not None and _public(installed) == wanted:
        is_right_build = installed.endswith("+cpu") != wants_cuda
        # Without a GPU every build runs; outside Linux there is only one.
        if is_right_build or (asked == "auto" and not has_gpu) or not is_linux:
            return TorchSource((), f"torch {installed} is installed already", 0)
        # `==2.13.0` is satisfied by 2.13.0+cpu too, so uv has to be told to take the other build.
        replace = ("--reinstall-package", "torch")

    for wheel in wheels:
        build = _wheel_version(wheel, python_tag, machine)
        if build is not None and _public(build) == wanted and build.endswith("+cpu") != wants_cuda:
            needed = CUDA_BYTES if wants_cuda else CPU_BYTES
            return TorchSource(
                ("--find-links", str(wheel.parent), *replace), f"{wheel.name} lies on this machine", needed
            )
    if wants_cuda:
        return TorchSource(replace, "CUDA is wanted: the index's CUDA build", CUDA_BYTES)
    if not is_linux:
        return TorchSource(replace, "not Linux: the index's own build has no CUDA", CPU_BYTES)
    return TorchSource(("--torch-backend", "cpu", *replace), "no GPU: the CPU build", CPU_BYTES)


def _public(version: str) -> str:
    """The version without its local part: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def _wheel_version(wheel: Path, python_tag: str, machine: str) -> str | None:
    """The version of a torch wheel that this Python can load, read off its file name; None for any other file."""
    parts = wheel.name.removesuffix(".whl").split("-")
    if wheel.suffix != ".whl" or len(parts) != 5 or parts[0] != "torch":
        return None
    return parts[1] if parts[2] == python_tag and parts[4].endswith(machine) else None


def wheel_folders(configured: str, environment: Mapping[str, str]) -> list[Path]:
    """The folders of wheels that pip knows: of its configuration and of PIP_FIND_LINKS, which are space-separated.

    uv does not read pip's configuration, so they are handed on. Addresses and folders that are not there drop out.
    """
    named = [*environment.get("PIP_FIND_LINKS", "").split(), *configured.split()]
    folders = (Path(name.removeprefix("file://")) for name in dict.fromkeys(named))
    return [folder for folder in folders if folder.is_dir()]
