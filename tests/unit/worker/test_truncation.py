"""Which turns of a chat are left out where it is too long."""

import pytest

from tandem.specs import ChatMessage
from tandem.specs.tools import CalledFunction, ToolCall
from worker.tasks.truncation import Chat, without_oldest_turns

CALL = ToolCall(id="call_1", function=CalledFunction(name="look_up", arguments="{}"))
CHAT: Chat = (
    ChatMessage(role="system", content="s"),
    ChatMessage(role="user", content="1"),
    ChatMessage(role="assistant", content="", tool_calls=(CALL,)),
    ChatMessage(role="tool", content="2", tool_call_id="call_1"),
    ChatMessage(role="assistant", content="3"),
    ChatMessage(role="user", content="4"),
    ChatMessage(role="system", content="t"),
    ChatMessage(role="assistant", content="5"),
    ChatMessage(role="user", content="6"),
)


def said(chat: Chat) -> str:
    return "".join(message.content for message in chat)


@pytest.mark.parametrize(("room", "left"), [(9, "s1234t56"), (8, "s1234t56"), (7, "s4t56"), (4, "st6"), (1, "st6")])
def test_as_few_turns_go_as_must(room: int, left: str) -> None:
    """A call goes with its output, system messages stay, and so does the last turn, whether or not it fits."""
    assert said(without_oldest_turns(CHAT, lambda chat: len(said(chat)) <= room)) == left


def test_a_chat_without_a_user_stays_as_it_is() -> None:
    assert without_oldest_turns(CHAT[:1], lambda _: False) == CHAT[:1]


def test_a_long_chat_is_encoded_a_few_times() -> None:
    chat, looks = tuple(ChatMessage(role="user", content=str(number)) for number in range(1000)), []

    def fits(some: Chat) -> bool:
        looks.append(some)
        return len(some) <= 10

    assert without_oldest_turns(chat, fits) == chat[-10:]
    assert len(looks) <= 11
