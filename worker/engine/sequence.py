"""The engine's unit of work: one prompt that is being prefilled or decoded."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from tandem.errors import AttemptStopped, Cancelled, DeadlineExceeded
from tandem.specs import GenerationParameters
from worker.engine.tokens.sampling import Constraint, Sampling

if TYPE_CHECKING:  # adapter_weights imports torch, which the scheduler's tests do without
    from worker.engine.adapters.weights import AdapterWeights
    from worker.engine.kv.slots import ParkedKV
    from worker.engine.text.text_output import TextOutput
    from worker.engine.tokens.sampler import Chosen

FinishReason = Literal["stop", "length"]
"""`stop`: an end token or a stop string; `length`: max_new_tokens or the context is used up."""


class SequenceState(StrEnum):
    """Where a sequence stands in the engine."""

    WAITING = "waiting"
    """It has no slot: not yet, or not any more since a more urgent one took it."""
    PREFILLING = "prefilling"
    """It has a slot, and a part of its prompt is not yet in it."""
    DECODING = "decoding"
    """Each step gives it one more token."""
    FINISHED = "finished"
    """It has left the engine: its future holds the result or the error."""


@dataclass(frozen=True)
class Generated:
    """What a sequence came to."""

    text: str
    """The generated text without the prompt, special tokens and the stop string."""
    token_ids: tuple[int, ...]
    """Every generated token, with the end token or the tokens of the stop string if one ended it."""
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    """Tokens of the prompt whose keys and values were there already."""
    completion_tokens: int
    token_logprobs: tuple[float, ...]
    """For each generated token, its natural log-probability under the model, before temperature and cuts."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    """For each generated token, the most probable ones there with their log-probabilities, as many as were wanted."""
    prompt_logprobs: "tuple[Chosen, ...]" = ()
    """Of each token of the prompt but the first, where that was asked for."""


class Sequence:
    """One prompt with its parameters, its adapter and, through `future`, its result.

    Only `cancel` may be called from another thread once the sequence is submitted; everything else belongs to the
    engine's thread. A sequence is submitted once.
    """

    def __init__(
        self,
        prompt_tokens: Iterable[int],
        parameters: GenerationParameters,
        *,
        adapter: "AdapterWeights | None" = None,
        constraint: Constraint | None = None,
        on_text: Callable[[str], None] | None = None,
        deadline: float | None = None,
        priority: int = 0,
        owner: str = "",
    ) -> None:
        """`constraint` says what its text must look like; it belongs to this sequence alone.

        `on_text` is called from the engine's thread with each newly decided piece of text.

        `deadline`, in seconds of `time.monotonic()`: at the first step from then on, the sequence leaves the engine,
        even if it still waits for a slot, and its future raises `DeadlineExceeded`.

        A sequence of higher `priority` goes first, and takes the slot of one of lower priority if it must. Among
        equals the one goes first whose `owner` has had less of the engine.
        """
        self.prompt_tokens = tuple(prompt_tokens)
        self.parameters = parameters
        self.adapter = adapter
        self.constraint = constraint
        self.on_text = on_text
        self.deadline = deadline
        self.priority = priority
        self.owner = owner
        self.future: Future[Generated] = Future()

        self.state = SequenceState.WAITING
        self.max_new_tokens = parameters.max_new_tokens
        """Tokens it may generate; the engine lowers it to what the context leaves."""
        self.slot: int | None = None
        self.adapter_slot: int | None = None
        self.virtual_tokens = 0 if adapter is None or adapter.prefix is None else adapter.prefix.length
        """Positions before the prompt that its adapter fills: of a trained prefix, or of trained embeddings."""
        self.prefilled = 0
        """Positions of `virtual_tokens` and prompt whose keys and values are in the slot."""
        self.reused_tokens = 0
        """Prompt tokens whose keys and values were there already, from a prompt that began the same."""
        self.arrival = 0
        """Its number in the order of arrival; the scheduler's."""
        self.waiting_since = 0.0
        """When it began to wait for a slot, in seconds of the scheduler's clock."""
        self.admitted = 0
        """Its number in the order of admission; the scheduler's."""
        self.rank = priority
        """Its priority at its admission, with what it had risen by waiting: only what is above may take its slot."""
        self.parked: ParkedKV | None = None
        """Its keys and values while it has given its slot to a more urgent one."""
        self.overtaken = 0
        """Sequences that were admitted before it although they came later."""
        self.token_ids: list[int] = []
        self.token_logprobs: list[float] = []
        self.top_logprobs: list[tuple[tuple[int, float], ...]] = []
        self.prompt_logprobs: list[Chosen] = []
        """Of the prompt's tokens that were read, but for the first, where that is asked for."""
        self.output: TextOutput | None = None
        self.sampling: Sampling | None = None
        """How its tokens are chosen; the engine's."""
        self._cancelled = False

    @property
    def adapter_id(self) -> str | None:
        """The id of its adapter; None for the base model."""
        return None if self.adapter is None else self.adapter.id

    @property
    def slot_adapter_id(self) -> str | None:
        """The same if its adapter needs a slot of the bank; None for one that only puts something before prompts."""
        return self.adapter_id if self.adapter is not None and self.adapter.prefix is None else None

    @property
    def context_tokens(self) -> int:
        """Positions that are read before the first token is generated."""
        return self.virtual_tokens + len(self.prompt_tokens)

    @property
    def computed_positions(self) -> int:
        """Positions whose keys and values its slot holds: all but that of the last token, which is read next."""
        return self.context_tokens + len(self.token_ids) - 1 if self.token_ids else self.prefilled

    @property
    def computed_tokens(self) -> tuple[int, ...]:
        """Tokens whose keys and values its slot holds, after the virtual ones."""
        return (*self.prompt_tokens, *self.token_ids)[: max(0, self.computed_positions - self.virtual_tokens)]

    @property
    def last_token(self) -> int:
        """The token that the next decode step reads; only of a decoding sequence."""
        return self.token_ids[-1]

    @property
    def next_position(self) -> int:
        """The position of `last_token` in the sequence, counted from 0 and with the virtual ones."""
        return self.context_tokens + len(self.token_ids) - 1

    def cancel(self) -> None:
        """Ask that it stops: it leaves before the next forward, and its future raises `Cancelled`.

        Safe from any thread, also while it waits for a slot. A sequence that has finished before stays finished.
        """
        self._cancelled = True

    def reason_to_stop(self, now: float) -> AttemptStopped | None:
        """Why it must take part in no further forward, if so; `now` in seconds of `time.monotonic()`."""
        if self._cancelled:
            return Cancelled()
        if self.deadline is not None and now >= self.deadline:
            return DeadlineExceeded()
        return None

    def generated(self, finish_reason: FinishReason) -> Generated:
        """Its result, as it now stands."""
        return Generated(
            text="" if self.output is None else self.output.text,
            token_ids=tuple(self.token_ids),
            finish_reason=finish_reason,
            prompt_tokens=len(self.prompt_tokens),
            reused_tokens=self.reused_tokens,
            completion_tokens=len(self.token_ids),
            token_logprobs=tuple(self.token_logprobs),
            top_logprobs=tuple(self.top_logprobs),
            prompt_logprobs=tuple(self.prompt_logprobs),
        )
