"""`tandem batch`: many requests in one file, and their answers."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.tables import batches_table, print_json, print_table, record_table
from tandem.client import BatchRecord, Tandem
from tandem.errors import InvalidRequest
from tandem.specs.batch import BatchEndpoint

TIMES = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
FAULTS_SHOWN = 10
"""Faults that `show` names; the others are in the error file, or in `--json`."""

batch = typer.Typer(
    help="Have many requests answered in the background, from a file to a file.", no_args_is_help=True
)
BatchId = Annotated[str, typer.Argument(help="The batch's id.", metavar="BATCH")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@batch.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(help="JSON lines: custom_id, method, url and body.")],
    *,
    endpoint: Annotated[BatchEndpoint, typer.Option(help="The url of every line.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="It expires after this time: 24h, 30m, 7d.")] = "24h",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; exit with 1 if it is not completed.")
    ] = False,
) -> None:
    """Upload a file of requests and have it run; prints the batch's id."""
    with Tandem() as client:
        uploaded = client.upload(file, "batch")
        made = client.submit_batch(uploaded.id, endpoint=endpoint, completion_window=window)
        typer.echo(made.id)
        if wait:
            _tell(client.wait_for_batch(made.id))


@batch.command("show")
def show(batch_id: BatchId, *, as_json: AsJson = False) -> None:
    """Show how a batch stands, and what is wrong with its lines."""
    with Tandem() as client:
        found = client.batch(batch_id)
    if as_json:
        print_json(found.record)
        return
    print_table(record_table({name: each for name, each in found.record.items() if name != "errors"}, times=TIMES))
    for fault in found.errors[:FAULTS_SHOWN]:
        typer.echo(f"line {fault['line']}: {fault['message']}")
    if len(found.errors) > FAULTS_SHOWN:
        typer.echo(f"… and {len(found.errors) - FAULTS_SHOWN} more")


@batch.command("list")
def list_batches(
    *, limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20, as_json: AsJson = False
) -> None:
    """List your batches, newest first."""
    with Tandem() as client:
        found = list(client.batches(limit=limit))
    if as_json:
        print_json([each.record for each in found])
    else:
        print_table(batches_table(found, time.time()), empty="there are no batches")


@batch.command("cancel")
def cancel(batch_id: BatchId) -> None:
    """End a batch early; what was answered is kept."""
    with Tandem() as client:
        typer.echo(f"{batch_id} is {client.cancel_batch(batch_id).status}")


@batch.command("output")
def output(
    batch_id: BatchId,
    *,
    errors: Annotated[bool, typer.Option("--errors", help="The rows that failed, instead of the answers.")] = False,
) -> None:
    """Print an ended batch's answers as JSON lines, in the order of the input."""
    with Tandem() as client:
        found = client.batch(batch_id)
        if not found.has_ended:
            raise InvalidRequest(f"batch {batch_id} is {found.status}; its files are made when it ends")
        file_id = found.error_file_id if errors else found.output_file_id
        if file_id is not None:
            sys.stdout.buffer.write(client.file_content(file_id))


def _tell(ended: BatchRecord) -> None:
    typer.echo(f"{ended.status}: {ended.completed} of {ended.total} rows answered, {ended.failed} failed")
    if ended.status != "completed":
        raise typer.Exit(1)
