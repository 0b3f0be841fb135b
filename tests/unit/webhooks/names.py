"""A name server that tests write themselves."""

from collections.abc import Sequence


class Names:
    """Answers each look-up with the next of the given answers; the last one stands."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def addresses(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return list(answer)

    def close(self) -> None:
        """Nothing is open."""
