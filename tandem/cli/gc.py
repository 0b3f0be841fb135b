"""`tandem gc`: delete the artifacts that nothing refers to any more."""

from typing import Annotated

import typer

from tandem.collecting import collect_artifacts
from tandem.services import Services
from tandem.settings import Settings

UNITS = ("B", "KB", "MB", "GB", "TB")


def gc(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete artifacts that no job, file or adapter refers to; those younger than a day stay.

    Workers do this by themselves every hour. Reads TANDEM_REDIS_URL and TANDEM_ARTIFACTS_URL, as they do.
    """
    services = Services.connect(Settings.read())
    try:
        collected = collect_artifacts(services, dry_run=dry_run)
    finally:
        services.jobs.close()
    verb = "would delete" if dry_run else "deleted"
    typer.echo(f"{verb} {collected.deleted} ({_size(collected.bytes)}), kept {collected.kept}")


def _size(size: float) -> str:
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"
