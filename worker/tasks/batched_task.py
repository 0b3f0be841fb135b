"""What the batcher drives: inputs become pieces, pieces of many jobs run together, a result is made of each input's.

Most inputs are one piece. A long one may be several: the windows of a text, the labels of a zero-shot question.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

ParametersT = TypeVar("ParametersT")


class Piece(Protocol):
    """One row of a forward, as its task made it."""

    @property
    def company(self) -> Hashable:
        """Only pieces of equal company may run together."""

    def __len__(self) -> int:
        """What it costs, in the task's unit: tokens, pixels, or samples of sound."""


PieceT = TypeVar("PieceT", bound=Piece)

Pause = Callable[[], Sequence[bool]]
"""Called between steps of a long forward (tokens of a generation): lets others have the device for a moment, and says
for each piece whether its job has ended meanwhile, so that its row may stop."""


class BatchedTask(ABC, Generic[ParametersT, PieceT]):
    """One task on one loaded model.

    A piece's output and an input's result do not depend on what runs beside them, beyond rounding.
    """

    unit: str = "tokens"
    """Of a piece's cost, as errors and metrics name it."""

    @property
    def bytes(self) -> int:
        """What it holds on the device beside its model."""
        return 0

    @abstractmethod
    def encode(self, inputs: Sequence[Any], parameters: ParametersT, *, first: int = 0) -> list[list[PieceT]]:
        """The pieces of each input, in order, at least one each. Safe to call from several threads.

        `first` is the place of `inputs[0]` in the job. Raises InvalidRequest, also as its subclass PromptTooLong,
        naming the input by its place, as `inputs[3]`.
        """

    @abstractmethod
    def forward(self, pieces: Sequence[PieceT], pause: Pause) -> Sequence[Any]:
        """One output a piece, in order. All pieces are of one company."""

    @abstractmethod
    def result(self, outputs: Sequence[Any], pieces: Sequence[PieceT], parameters: ParametersT) -> Any:
        """An input's result, from the outputs of all its pieces."""
