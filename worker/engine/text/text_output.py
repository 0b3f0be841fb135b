"""A sequence's text: tokens in, decided text out to the listener, and whether a stop string ended it."""

from collections.abc import Callable

from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.stop_strings import StopStrings


class TextOutput:
    """Joins a detokenizer and stop strings. `text` always is what `on_text` was told, joined."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        on_text: Callable[[str], None] | None,
        *,
        min_tokens: int = 0,
    ) -> None:
        """Stop strings are looked for after the text of the first `min_tokens` tokens."""
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._on_text = on_text
        self._unstoppable = min_tokens
        """Tokens to come whose text cannot end the sequence."""
        self.text = ""

    def push(self, token: int) -> bool:
        """Add a generated token; returns whether a stop string is complete."""
        piece = self._detokenizer.push(token)
        if self._unstoppable > 0:
            self._unstoppable -= 1
            self._tell(piece)
            return False
        return self._decide(piece)

    def flush(self) -> bool:
        """Give out what is left when no more tokens come; returns whether it completed a stop string."""
        if self._decide(self._detokenizer.flush()):
            return True
        self._tell(self._stop_strings.flush())
        return False

    def _decide(self, piece: str) -> bool:
        if not piece:
            return False
        decided = self._stop_strings.push(piece)
        self._tell(decided.text)
        return decided.stopped

    def _tell(self, text: str) -> None:
        if text:
            self.text += text
            if self._on_text is not None:
                self._on_text(text)
