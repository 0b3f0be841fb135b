"""Errors in the words of OpenAI's requests: what a job's spec calls `parameters.stop`, they call `stop`."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pydantic import ValidationError

from tandem.errors import TandemError

OWN_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "return_full_text": "echo",
    "prompt_logprobs": "echo",
    "adapter": "model",
}
"""Fields of a spec that OpenAI's requests have under another name; `parameters.` is left out besides."""


@contextmanager
def openai_names(inputs: str, names: Mapping[str, str] = OWN_NAMES) -> Iterator[None]:
    """Whatever TandemError leaves the block names the request's fields; `inputs` is what it calls a job's inputs."""
    try:
        yield
    except TandemError as error:
        raise renamed(error, inputs, names) from error


def renamed(error: TandemError, inputs: str, names: Mapping[str, str] = OWN_NAMES) -> TandemError:
    """The same error in the request's words."""
    told = copy.copy(error)
    told.message = in_openai_words(error.message, inputs, names)
    told.args = (told.message,)
    if error.param is not None:
        told.param = _field(error.param, inputs, names)
    return told


def in_openai_words(text: str, inputs: str, names: Mapping[str, str] = OWN_NAMES) -> str:
    """A message with the request's names in place of the spec's, where they stand in backticks or brackets."""
    text = re.sub(r"\bparameters\.(?=[a-z])", "", text)
    text = re.sub(r"`inputs(?=[`.\[])|\binputs(?=\[\d)", lambda found: found[0].replace("inputs", inputs), text)
    for own, theirs in names.items():
        if own != "adapter":  # a word of other sentences too
            text = re.sub(rf"\b{own}\b", theirs, text)
    return text


def _field(param: str, inputs: str, names: Mapping[str, str]) -> str:
    name, *rest = re.split(r"(?=[.\[])", param.removeprefix("parameters."), maxsplit=1)
    if name == "inputs":
        name = inputs
    return names.get(name, name) + "".join(rest)


def refuse_as_asked(make: Callable[[], object], *, inputs: str, names: Mapping[str, str] = OWN_NAMES) -> None:
    """Raises ValueError, in the request's words, if what it stands for cannot be made."""
    try:
        make()
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(in_openai_words(said, inputs, names)) from error
