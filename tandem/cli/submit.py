"""`tandem submit`: one job for each input, and its result."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from tandem.cli.failures import failure_line
from tandem.client import Inputs, Tandem
from tandem.errors import TandemError

STANDARD_INPUT = Path("-")


def submit(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="The inputs, one job each. Without any: a file or standard input.")
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option(help="A model or an adapter (`tandem models`); the task's default without it.")
    ] = None,
    task: Annotated[str, typer.Option(help="text-generation, feature-extraction, fill-mask, …")] = "text-generation",
    adapter: Annotated[str | None, typer.Option(help="An adapter of the model.")] = None,
    parameters: Annotated[str | None, typer.Option(help="JSON, such as '{\"max_new_tokens\": 50}'.")] = None,
    file: Annotated[Path, typer.Option(help="One input a line; `-` is standard input.")] = STANDARD_INPUT,
    chat: Annotated[bool, typer.Option("--chat", help="Send each input as a user's message of a chat.")] = False,
    priority: Annotated[
        Literal["low", "normal", "high", "urgent"] | None, typer.Option(help="A more urgent job goes first.")
    ] = None,
    delay: Annotated[float | None, typer.Option(min=0.0, help="Start no earlier than in so many seconds.")] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0.0, help="A job that has not ended after so many seconds expires.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label of yours; may be given several times.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="A URL to tell when a job has ended.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Print the results, or only the jobs' ids.")] = True,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text while it is written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each input's result as JSON, one a line.")] = False,
) -> None:
    """Submit one job for each input; print the results in the inputs' order.

    With several inputs, one that fails is one red line on standard error; the others go on, and the exit code is 1.
    """
    if stream and (as_json or not wait):
        raise typer.BadParameter(
            "it prints text while it waits: leave out --no-wait and --json", param_hint="--stream"
        )
    texts = prompts or _lines(file)
    inputs: list[Inputs] = [[{"role": "user", "content": text}] if chat else text for text in texts]
    options: dict[str, Any] = {"model": model, "adapter": adapter, "parameters": _parameters(parameters)}
    scheduling: dict[str, Any] = {
        "priority": priority,
        "delay_seconds": delay,
        "deadline_seconds": deadline,
        "metadata": _labels(metadata),
        "webhook": webhook,
    }
    options |= {name: value for name, value in scheduling.items() if value is not None}
    with Tandem() as client:
        if not wait:
            for item in inputs:
                typer.echo(client.submit(task, item, **options).id)
        elif stream:
            for item in inputs:
                for piece in client.stream(item, **options):
                    typer.echo(piece, nl=False)
                typer.echo()
        else:
            _print_results(client, task, inputs, options, as_json=as_json)


def _print_results(
    client: Tandem, task: str, inputs: list[Inputs], options: dict[str, Any], *, as_json: bool
) -> None:
    failed = False
    if len(inputs) == 1:
        result = client.run(task, inputs[0], **options)
        typer.echo(_shown(result if "generated_text" in result else result["rows"][0], as_json))
        return
    for result in client.map(task, inputs, on_error="return", **options):
        if isinstance(result, TandemError):
            failed = True
            Console(stderr=True, soft_wrap=True).print(failure_line(result))
            # Line n of the output stays the answer to line n of the input.
            typer.echo("null" if as_json else "")
        else:
            typer.echo(_shown(result, as_json))
    if failed:
        raise typer.Exit(1)


def _shown(result: Any, as_json: bool) -> str:
    """What a person asked for: the text of a generation, the row of any other task as JSON."""
    if as_json:
        return json.dumps(result, ensure_ascii=False)
    if isinstance(result, dict) and "generated_text" in result:
        return str(result["generated_text"])
    return json.dumps(result, ensure_ascii=False)


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if file == STANDARD_INPUT else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise typer.BadParameter("there is no input; give a prompt, or one input a line", param_hint="PROMPTS")
    return lines


def _parameters(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"is not JSON ({error})", param_hint="--parameters") from error
    if not isinstance(value, dict):
        raise typer.BadParameter('must be a JSON object such as {"max_new_tokens": 50}', param_hint="--parameters")
    return value


def _labels(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    for pair in pairs:
        if "=" not in pair:
            raise typer.BadParameter(f"{pair!r} is no NAME=VALUE", param_hint="--metadata")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
