"""OpenAI's requests may say `null` for whatever they leave out."""

from typing import Any

from pydantic import model_validator

from tandem.specs import Spec


class NullableSpec(Spec):
    """A part of a request in which `null` is the same as nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: given for name, given in value.items() if given is not None}
