"""JSON that is not complete yet: what stands at a place, or may yet stand there, and where a value ends."""

import re


class Pending(Exception):
    """More text is needed to decide."""


class Mismatch(Exception):
    """It is something else."""


class Scan:
    """Reads forward in a text. Raises Mismatch for what is not there, Pending where the text ends before that."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.place = 0

    def space(self) -> None:
        while self._text[self.place : self.place + 1].isspace():
            self.place += 1

    def follows(self, *options: str, pending: bool = True) -> bool:
        """Whether one of them is next. Where that is open, raises Pending if it may be waited for."""
        rest = self._text[self.place : self.place + max(map(len, options))]
        if rest.startswith(options):
            return True
        if pending and any(option.startswith(rest) for option in options):
            raise Pending
        return False

    def literal(self, *options: str) -> str:
        if not self.follows(*options):
            raise Mismatch
        found = next(option for option in options if self._text.startswith(option, self.place))
        self.place += len(found)
        return found

    def member(self, *keys: str) -> str:
        """One of these keys with its colon; the scan then stands at the value."""
        self.space()
        key = self.literal(*(f'"{key}"' for key in keys))
        self.space()
        self.literal(":")
        self.space()
        return key.strip('"')

    def text(self) -> str:
        """A string without escapes."""
        self.literal('"')
        end = self._text.find('"', self.place)
        if end < 0:
            raise Pending
        found, self.place = self._text[self.place : end], end + 1
        return found

    def name(self) -> str:
        """A bare name."""
        match = re.match(r"[A-Za-z0-9_.-]+", self._text[self.place :])
        if match is None:
            raise Mismatch
        if match.end() == len(self._text) - self.place:
            raise Pending
        self.place += match.end()
        return match[0]


class JsonValue:
    """Finds the end of a JSON value that comes in pieces."""

    def __init__(self) -> None:
        self.text = ""
        """What was taken, of a value that is no object."""
        self.is_object = False
        self.is_over = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    def take(self, text: str) -> int:
        """How many characters of the text belong to the value."""
        for place, letter in enumerate(text):
            if not self._begun:
                self._begun, self.is_object = True, letter == "{"
            elif self._depth == 0 and not self._in_string and (letter in ",}]" or letter.isspace()):
                # A word such as null ends where another thing begins.
                self.is_over = True
                return place
            self._step(letter)
            if not self.is_object:
                self.text += letter
            if self.is_over:
                return place + 1
        return len(text)

    def _step(self, letter: str) -> None:
        if self._in_string:
            if self._escaped or letter != '"':
                self._escaped = letter == "\\" and not self._escaped
                return
            self._in_string = False
            self.is_over = self._depth == 0
        elif letter == '"':
            self._in_string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            self.is_over = self._depth == 0


def end_of_object(text: str) -> int | None:
    """Behind the brace that closes the object in whose midst the text begins; None if it is not there yet."""
    value = JsonValue()
    value.take("{")
    end = value.take(text)
    return end if value.is_over else None
