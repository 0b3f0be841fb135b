"""An error on the command line: one red line with its code, its message and what to do."""

from rich.text import Text

from tandem.errors import TandemError

FIXES = {
    "invalid_api_key": "set TANDEM_API_KEY to the key that `tandem up` printed",
    "model_not_found": "`tandem models` lists what there is",
    "adapter_not_found": "`tandem adapters` lists what there is",
    "job_not_found": "`tandem jobs` lists what there is",
    "queue_unavailable": "`tandem doctor` says what is wrong with the service",
    "wait_timeout": "`tandem logs -f` goes on following it",
}
"""What to do, for codes whose message cannot know that the reader is at a command line."""


def failure_line(error: TandemError) -> Text:
    """The line to print on standard error."""
    line = Text.assemble(("error ", "bold red"), (f"[{error.code}] ", "red"), (error.message, "red"))
    fix = FIXES.get(error.code)
    return line.append(f" — {fix}") if fix else line
