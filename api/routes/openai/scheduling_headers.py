"""The headers in which a request to an OpenAI door says how urgent it is: that API's bodies have no room for it.

With OpenAI's clients: `extra_headers={"x-tandem-priority": "high", "x-tandem-deadline-seconds": "30"}`.
"""

from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header

from tandem.specs import MAX_DELAY_SECONDS, Priority, Scheduling

SomeSpec = TypeVar("SomeSpec", bound=Scheduling)


class SchedulingHeaders:
    """What the headers say; whatever they leave out stays as the spec has it."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said

    def on(self, spec: SomeSpec) -> SomeSpec:
        """The spec, scheduled as the headers say."""
        return spec.model_copy(update=self._said)


async def _said(
    priority: Annotated[
        Priority | None,
        Header(alias="x-tandem-priority", description="How urgent the job is; `normal` if nothing says otherwise"),
    ] = None,
    deadline_seconds: Annotated[
        float | None,
        Header(
            alias="x-tandem-deadline-seconds",
            gt=0.0,
            le=MAX_DELAY_SECONDS,
            allow_inf_nan=False,
            description="Answer within so many seconds, or with the error `deadline_exceeded` (504)",
        ),
    ] = None,
) -> SchedulingHeaders:
    said = {"priority": priority, "deadline_seconds": deadline_seconds}
    return SchedulingHeaders({name: value for name, value in said.items() if value is not None})


SchedulingHeadersDep = Annotated[SchedulingHeaders, Depends(_said)]
