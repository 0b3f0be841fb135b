"""`tandem adapters`: list, show, add, download, merge, pin, unpin, delete."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.merge import merge_adapter
from tandem.cli.tables import adapters_table, print_json, print_table, record_table
from tandem.client import Tandem

adapters = typer.Typer(help="List, show, add, download, merge, pin and delete adapters.")

AdapterId = Annotated[str, typer.Argument(metavar="ADAPTER", help="The adapter's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@adapters.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """List, show, add, download, merge, pin and delete adapters; without a command, list them."""
    if context.invoked_subcommand is None:
        list_adapters()


@adapters.command("list")
def list_adapters(*, as_json: AsJson = False) -> None:
    """List the adapters, newest first."""
    with Tandem() as client:
        found = client.adapters()
    if as_json:
        print_json([adapter.record for adapter in found])
    else:
        print_table(
            adapters_table(found, time.time()),
            empty="no adapters yet; a fine-tuning job makes one, `tandem adapters add` takes one",
        )


@adapters.command("show")
def show(adapter: AdapterId, *, as_json: AsJson = False) -> None:
    """Show where an adapter comes from, and its metrics."""
    with Tandem() as client:
        found = client.adapter(adapter)
    if as_json:
        print_json(found.record)
    else:
        print_table(record_table(found.record, times=("created_at",)))


@adapters.command("add")
def add(
    folder: Annotated[
        Path, typer.Argument(help="A folder that PEFT's `save_pretrained` wrote, or a zip file of one.")
    ],
    base: Annotated[str, typer.Option("--base", help="The catalogue name of the model that it was trained on.")],
    suffix: Annotated[str | None, typer.Option("--suffix", help="A word of yours in the adapter's id.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Serve an adapter that was trained elsewhere; it prints the adapter's id."""
    with Tandem() as client:
        added = client.add_adapter(folder, base, suffix=suffix)
    if as_json:
        print_json(added.record)
    else:
        typer.echo(added.id)


@adapters.command("download")
def download(
    adapter: AdapterId,
    folder: Annotated[Path, typer.Argument(help="Where its files go; the folder is made if need be.")],
) -> None:
    """Write an adapter's PEFT folder, which `PeftModel.from_pretrained` loads."""
    with Tandem() as client:
        target = client.download_adapter(adapter, folder)
    for path in sorted(target.iterdir()):
        typer.echo(str(path))


@adapters.command("merge")
def merge(
    adapter: AdapterId,
    folder: Annotated[Path, typer.Argument(help="A new folder for the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base's folder or hub id; by default this machine's catalogue's.")
    ] = None,
) -> None:
    """Write an adapter and its base as one model, in safetensors, for programs that take no adapters."""
    merge_adapter(adapter, folder, base)
    for path in sorted(folder.iterdir()):
        typer.echo(str(path))


@adapters.command("pin")
def pin(adapter: AdapterId) -> None:
    """Let an adapter keep its slot on every worker, from its first use there on."""
    with Tandem() as client:
        client.pin_adapter(adapter)
    typer.echo(f"{adapter} keeps its slot; `tandem adapters unpin {adapter}` ends that")


@adapters.command("unpin")
def unpin(adapter: AdapterId) -> None:
    """Let a pinned adapter leave its slot as others do."""
    with Tandem() as client:
        client.unpin_adapter(adapter)
    typer.echo(f"{adapter} leaves its slot when others need it")


@adapters.command("delete")
def delete(
    adapter: AdapterId,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Withdraw an adapter: no new job may name it."""
    if not yes:
        typer.confirm(f"Delete {adapter}?", abort=True)
    with Tandem() as client:
        client.delete_adapter(adapter)
    typer.echo(f"{adapter} is deleted")
