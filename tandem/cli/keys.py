"""`tandem keys`: new, list, revoke; the API takes a change of the file up by itself."""

from pathlib import Path
from typing import Annotated

import typer

from tandem.api_keys import MAX_WEIGHT, MIN_WEIGHT
from tandem.api_keys_file import KeysFile
from tandem.cli.tables import print_json, print_table, table

keys = typer.Typer(
    help="Make, list and revoke API keys; each has an owner, a share and a limit.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The key's name: a-z, 0-9 and dashes.")]
File = Annotated[
    Path,
    typer.Option(
        "--file", envvar="TANDEM_API_KEYS_FILE", help="The keys file that the API reads.", show_default=False
    ),
]


@keys.command("new")
def new(
    name: Name,
    *,
    file: File,
    owner: Annotated[
        str | None, typer.Option(help="Whose is what is made with it: the same for a team; the name by default.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="It reaches what is anybody's, and may pause the service.")
    ] = False,
    weight: Annotated[
        float, typer.Option(min=MIN_WEIGHT, max=MAX_WEIGHT, help="The owner's share beside other owners.")
    ] = 1.0,
    max_queued: Annotated[
        int | None, typer.Option(min=1, help="Queued jobs of the owner at once; no limit by default.")
    ] = None,
) -> None:
    """Make a key and print it, this once: the file keeps its SHA-256 only."""
    typer.echo(KeysFile(file).add(name, owner=owner, operator=operator, weight=weight, max_queued=max_queued))


@keys.command("list")
def list_keys(*, file: File, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the keys: names, owners, shares and limits."""
    entries = KeysFile(file).entries()
    if as_json:
        print_json([entry.model_dump(exclude={"sha256"}) for entry in entries])
        return
    made = table("name", "owner", "operator", "weight", "queued at most")
    for entry in entries:
        key = entry.as_key()
        limit = "-" if key.max_queued is None else str(key.max_queued)
        made.add_row(entry.name, key.owner, "yes" if key.operator else "-", f"{key.weight:g}", limit)
    print_table(made, empty="no keys yet; `tandem keys new NAME` makes one")


@keys.command("revoke")
def revoke(name: Name, *, file: File) -> None:
    """Remove a key: it opens nothing from the next request on. Its jobs, files and adapters stay."""
    KeysFile(file).revoke(name)
    typer.echo(f"{name} is revoked")
