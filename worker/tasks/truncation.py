"""Chats that are too long for their model: which of their messages it is given."""

from bisect import bisect_left
from collections.abc import Callable

from tandem.specs import ChatMessage

Chat = tuple[ChatMessage, ...]


def without_oldest_turns(chat: Chat, fits: Callable[[Chat], bool]) -> Chat:
    """The chat without as few of its oldest turns as must go, so that it fits.

    A turn is a user's message with all that follows it: calls of functions stay with what these returned, and what
    is left begins with a user's message, as many chat templates demand. System messages stay, and the last turn: a
    chat may still not fit without the others.
    """
    begins = [place for place, message in enumerate(chat) if message.role == "user"]
    # A shorter chat has fewer tokens: looked for by halves, since each look encodes it.
    kept = bisect_left(range(len(begins) - 1), True, key=lambda turn: fits(_from_turn(chat, begins, turn)))
    return _from_turn(chat, begins, kept)


def _from_turn(chat: Chat, begins: list[int], turn: int) -> Chat:
    """System messages, and what comes from a turn on; all of the chat for its first."""
    if turn <= 0:
        return chat
    return tuple(message for place, message in enumerate(chat) if place >= begins[turn] or message.role == "system")
