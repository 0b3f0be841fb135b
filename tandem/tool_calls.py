"""Finds a model's tool calls in the text that it writes, piece by piece.

Models write calls in a few widespread forms, and all of them are understood whatever the model:

- `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen, SmolLM3, …), several one after another, and
  `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>` (Qwen3-Coder);
- the text is nothing but JSON with the name of a function on offer, `{"name": …, "parameters": {…}}` (Llama 3), or a
  list of such objects, also after `[TOOL_CALLS]` (Mistral) or `<|python_tag|>`;
- `[TOOL_CALLS]name[ARGS]{…}` (Mistral since 2025). Marks that are special tokens are no part of the text.

What is said does not depend on where the pieces' borders lie, so a stream and a whole text come to the same calls.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from tandem.complete_calls import FoundCall, as_object, other_form
from tandem.partial_json import JsonValue, Mismatch, Pending, Scan, end_of_object
from tandem.specs.tools import MAX_CALLS

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = (OPEN, "[TOOL_CALLS]", "<|python_tag|>")
"""Each begins a call, wherever it stands."""
SEPARATORS = ",;"
"""Between the calls of one list, or of one line."""


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a function; `call` numbers the text's calls from 0."""

    call: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of a call's arguments: all pieces together are what the model wrote, by rights a JSON object."""

    call: int
    text: str


Heard = Said | CallBegun | Arguments


def read_tool_calls(text: str, names: Collection[str], *, most: int = MAX_CALLS) -> tuple[str, tuple[FoundCall, ...]]:
    """Of a whole text: what it says besides its calls, and the calls."""
    reader = ToolCallReader(names, most=most)
    said = ""
    found: list[FoundCall] = []
    for heard in (*reader.push(text), *reader.finish()):
        match heard:
            case Said(piece):
                said += piece
            case CallBegun(name=name):
                found.append(FoundCall(name, ""))
            case Arguments(call, piece):
                found[call] = FoundCall(found[call].name, found[call].arguments + piece)
    return said, tuple(found)


class ToolCallReader:
    """Reads one text. Each state is a method that takes what it can from the buffer and names the next state."""

    def __init__(self, names: Collection[str], *, most: int = MAX_CALLS) -> None:
        """`names`: the functions on offer. Calls beyond `most` are dropped."""
        self._names = frozenset(names)
        self._most = most
        self._buffer = ""
        self._heard: list[Heard] = []
        self._calls = 0
        self._mark = ""
        """The mark that led to the header that is read; it is said if it opens no call."""
        self._is_tagged = False
        """Whether the call stands between OPEN and CLOSE."""
        self._is_enclosed = False
        """Whether the arguments stand in an object, which goes on after them."""
        self._value = JsonValue()
        self._is_over = False
        self._state: Callable[[], None] = self._beginning

    def push(self, piece: str) -> list[Heard]:
        """What one more piece of the text decides."""
        self._buffer += piece
        return self._advance()

    def finish(self) -> list[Heard]:
        """The rest, now that no more comes: what did not become a call is said as it stands."""
        self._is_over = True
        heard = self._advance()
        if self._state in (self._header, self._whole):
            heard += [Said(self._mark + self._buffer)]
        elif self._state in (self._beginning, self._text) and self._buffer:
            heard += [Said(self._buffer)]
        self._buffer = ""
        return heard

    def _advance(self) -> list[Heard]:
        self._heard = []
        try:
            while self._buffer:
                self._state()
        except Pending:
            pass  # the state goes on with the next piece
        heard, self._heard = self._heard, []
        return list(_joined(heard))

    # States

    def _beginning(self) -> None:
        """Nothing but white space so far: a call may stand here without a mark."""
        stripped = self._buffer.lstrip()
        if not stripped:
            raise Pending
        if stripped[0] in "{[" or self._may_be_name(stripped):
            self._state = self._text if stripped.startswith(MARKS) else self._header
        elif any(mark.startswith(stripped) for mark in MARKS):
            raise Pending
        else:
            self._state = self._text

    def _text(self) -> None:
        """Up to a mark; the beginning of one is held back."""
        places = [(place, mark) for mark in MARKS if (place := self._buffer.find(mark)) >= 0]
        if places:
            place, self._mark = min(places)
            self._say(self._buffer[:place])
            self._buffer = self._buffer[place + len(self._mark) :]
            self._is_tagged = self._mark == OPEN
            self._state = self._header
            return
        keep = max(_overlap(self._buffer, mark) for mark in MARKS)
        self._say(self._buffer[: len(self._buffer) - keep])
        self._buffer = self._buffer[len(self._buffer) - keep :]
        if keep:
            raise Pending

    def _header(self) -> None:
        """A call's name, up to where its arguments begin."""
        scan = Scan(self._buffer)
        try:
            name = self._named(scan)
        except Mismatch:
            self._state = self._whole if self._is_tagged else self._no_call
            return
        has_arguments = scan.follows("{", '"', "n", pending=False)
        self._buffer = self._buffer[scan.place :]
        self._begin(name)
        if has_arguments:
            self._value = JsonValue()
            self._state = self._arguments
        else:
            self._argue("{}")
            self._state = self._rest

    def _named(self, scan: Scan) -> str:
        """The called name; the scan then stands at the arguments, or at the end of an object without any."""
        scan.space()
        if scan.follows("["):
            scan.literal("[")
            scan.space()
        if not scan.follows("{"):
            name = scan.name()
            if scan.follows("[ARGS]"):
                scan.literal("[ARGS]")
            scan.space()
            if name not in self._names or not scan.follows("{"):
                raise Mismatch
            self._is_enclosed = False
            return name
        scan.literal("{")
        name = scan.member("type", "name")
        if name == "type":
            scan.text()
            scan.space()
            scan.literal(",")
            scan.member("name")
        name = scan.text()
        if name not in self._names and not self._is_tagged:
            raise Mismatch
        self._is_enclosed = True
        scan.space()
        if not scan.follows("}"):
            scan.literal(",")
            scan.member("arguments", "parameters")
            if not scan.follows("{", '"', "null"):
                raise Mismatch
        return name

    def _no_call(self) -> None:
        """What looked like a call without being one is text, as is all that follows it."""
        self._say(self._mark)
        self._mark = ""
        self._state = self._text

    def _arguments(self) -> None:
        taken = self._value.take(self._buffer)
        piece, self._buffer = self._buffer[:taken], self._buffer[taken:]
        if self._value.is_object:
            self._argue(piece)
        if self._value.is_over:
            if not self._value.is_object:
                self._argue(as_object(self._value.text))
            self._state = self._rest

    def _rest(self) -> None:
        """Behind the arguments: further members of the object, which say nothing to us, and its end."""
        if self._is_enclosed:
            end = end_of_object(self._buffer)
            if end is None:
                raise Pending
            self._buffer = self._buffer[end:]
        self._state = self._between

    def _between(self) -> None:
        """Behind a call: another one, or text."""
        stripped = self._buffer.lstrip()
        if not stripped or (self._is_tagged and CLOSE.startswith(stripped) and stripped != CLOSE):
            raise Pending
        if self._is_tagged and stripped.startswith(CLOSE):
            self._buffer = stripped[len(CLOSE) :]
            self._is_tagged = False
        elif stripped[0] in SEPARATORS + "]":
            self._buffer = stripped[1:]
        elif stripped[0] == "{" or self._may_be_name(stripped):
            self._state = self._header
        elif any(mark.startswith(stripped) for mark in MARKS):
            raise Pending
        else:
            # White space between a call and a mark is neither's.
            if stripped.startswith(MARKS):
                self._buffer = stripped
            self._state = self._text

    def _whole(self) -> None:
        """A tagged call in another form: read when it is complete."""
        end = self._buffer.find(CLOSE)
        if end < 0 and not self._is_over:
            raise Pending
        inside = self._buffer if end < 0 else self._buffer[:end]
        call = other_form(inside)
        if call is None:
            self._state = self._no_call
            return
        self._buffer = "" if end < 0 else self._buffer[end:]
        self._begin(call.name)
        self._argue(call.arguments)
        self._state = self._between

    # What is heard

    def _say(self, text: str) -> None:
        if text:
            self._heard.append(Said(text))

    def _begin(self, name: str) -> None:
        self._mark = ""
        self._calls += 1
        if self._calls <= self._most:
            self._heard.append(CallBegun(self._calls - 1, name))

    def _argue(self, text: str) -> None:
        if text and self._calls <= self._most:
            self._heard.append(Arguments(self._calls - 1, text))

    def _may_be_name(self, text: str) -> bool:
        """Whether a name on offer, with arguments after it, begins here, or may yet."""
        for name in self._names:
            if name.startswith(text):
                return True
            rest = text[len(name) :]
            if text.startswith(name) and (rest[0] == "{" or "[ARGS]".startswith(rest[:6])):
                return True
        return False


def _joined(heard: list[Heard]) -> Iterator[Heard]:
    """Neighbouring pieces of the same text as one."""
    held: Heard | None = None
    for each in heard:
        if isinstance(held, Said) and isinstance(each, Said):
            held = Said(held.text + each.text)
        elif isinstance(held, Arguments) and isinstance(each, Arguments) and held.call == each.call:
            held = Arguments(held.call, held.text + each.text)
        else:
            if held is not None:
                yield held
            held = each
    if held is not None:
        yield held


def _overlap(text: str, mark: str) -> int:
    """Characters in the longest end of `text` that begins `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
