"""One resident decoder model, serving many sequences in one continuous batch, each with its own adapter."""

import math
import time
from collections import deque
from collections.abc import Hashable
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from tandem.errors import AttemptStopped, InvalidModel, InvalidRequest, PromptTooLong, TandemError
from worker.engine.adapters.bank import AdapterBank
from worker.engine.counts import EngineCounts, Occupancy
from worker.engine.forward import Forward
from worker.engine.kernels.choice import kernels_for
from worker.engine.kernels.use import take_kernels
from worker.engine.kv.attention import IMPLEMENTATION
from worker.engine.kv.choice import slots_for
from worker.engine.linears.products import speed_up
from worker.engine.preparation import Preparation
from worker.engine.scheduling.adapter_slots import AdapterSlots
from worker.engine.scheduling.scheduler import Admission, Scheduler
from worker.engine.scheduling.step_plan import StepPlan
from worker.engine.sequence import FinishReason, Sequence
from worker.engine.support import unsupported_reason
from worker.engine.text.detokenizer import Detokenizer, Tokenizer
from worker.engine.text.stop_strings import StopStrings
from worker.engine.text.text_output import TextOutput
from worker.engine.tokens.sampler import Chosen
from worker.engine.tokens.sampling import Sampling

NOT_FINITE = "the model's output is not finite: the weights, of the model or of the adapter, are at fault"


KVReuse = Literal["owner", "shared", "off"]
"""Who may use the keys and values of a prompt that began the same: the same owner, everybody, nobody."""


class Engine:
    """Continuous batching over a model that it takes over: the model's linear layers and attention are replaced.

    `submit`, `has_work`, `progress`, `bytes` and `pinned_adapters` may be used from any thread, and wait for none;
    `step` and `abandon` belong to one thread.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        sequence_slots: int,
        slot_tokens: int,
        step_tokens: int,
        adapter_slots: int,
        adapter_rank: int,
        chunk_tokens: int | None = None,
        kv_reuse: KVReuse = "owner",
        packed_linears: bool = True,
        quantize: bool = False,
        gpu_kernels: bool = False,
        cpu_kernels: bool = True,
    ) -> None:
        """Allocates `sequence_slots` slots of `slot_tokens` tokens; a step computes at most `step_tokens` rows.

        `adapter_slots` adapters of rank up to `adapter_rank` can be in use at the same time. `chunk_tokens` bounds
        the tokens of prompts in a step in which others decode: fewer make their texts come more evenly, more read
        prompts with less work in all. `packed_linears` makes copies of linear layers that a CPU multiplies faster,
        and `quantize` has the large ones in 8 bits. `gpu_kernels` tries flash attention and CUDA graphs on a GPU,
        `cpu_kernels` compiled operations on a CPU.

        Raises InvalidModel for a model that cannot be held, ValueError for sizes that do not fit together.
        """
        reason = unsupported_reason(model)
        if reason is not None:
            raise InvalidModel(f"the engine cannot hold this model: {reason}", param="model")
        self._kv_reuse = kv_reuse
        self._scheduler = Scheduler(
            sequence_slots=sequence_slots,
            step_tokens=step_tokens,
            chunk_tokens=chunk_tokens,
            adapter_slots=AdapterSlots(adapter_slots),
            reuse_key=self._reuse_key,
        )
        self.counts = EngineCounts()
        self.max_context = min(slot_tokens, model.config.max_position_embeddings)
        """Tokens that one sequence may have, prompt and generated together."""
        self.adapter_rank = adapter_rank
        self._tokenizer = tokenizer
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        self.vocabulary = embeddings.num_embeddings
        """Tokens that the model has, those included that its tokenizer does not know."""
        self.end_tokens = _end_tokens(model)
        self._arrived: deque[Sequence] = deque()  # appended to by any thread, emptied by step
        self.pinned_adapters: frozenset[str] = frozenset()
        """Adapters that keep their slots from their first use on, as `AdapterSlots.pin` allows. Set by any thread."""
        self.progress = 0
        """Forwards computed and sequences ended early, together: it grows while there is work, or work stands still.
        (Steps are not counted: one that plans no row would be repeated for ever.)"""
        model.eval()
        model.set_attn_implementation(IMPLEMENTATION)
        self._bank = AdapterBank(slots=adapter_slots, rank=adapter_rank)
        self._bank.take_over(model, head=model.get_output_embeddings())
        kernels = kernels_for(model) if cpu_kernels else None
        self.packed_bytes = speed_up(self._bank.linears, quantize=quantize, kernels=kernels) if packed_linears else 0
        """Of the copies that make linear layers faster, beside the model's own weights."""
        self._bank.kernels = kernels = None if kernels is None else take_kernels(model, kernels)
        self._kv = slots_for(
            model, slots=sequence_slots, slot_tokens=self.max_context, gpu_kernels=gpu_kernels, kernels=kernels
        )
        self._preparation = Preparation(self._kv, self._bank, self.counts)
        self._forward = Forward(model, self._kv, self._bank)

    @property
    def occupancy(self) -> Occupancy:
        """How full it is now."""
        return Occupancy(
            waiting=len(self._arrived) + len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            free_sequence_slots=self._scheduler.free_sequence_slots,
            used_adapters=self._scheduler.adapter_slots.used,
        )

    @property
    def bytes(self) -> int:
        """What it holds beside the model's weights: their copies, keys and values, tables of adapters."""
        return self.packed_bytes + self.kv_bytes + self._bank.bytes

    @property
    def kv_bytes(self) -> int:
        """Memory of its slots' keys and values."""
        return self._kv.bytes

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._arrived) or self._scheduler.has_work

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence in; its result comes through `sequence.future`.

        Raises PromptTooLong when the context leaves no token to generate, InvalidRequest and AdapterMismatch for
        a prompt, a token of `logit_bias` or `stop_token_ids`, or an adapter that cannot run. `max_new_tokens` beyond
        the context is lowered: the sequence then finishes with `length`.
        """
        self._check(sequence)
        room = self.max_context - sequence.context_tokens
        sequence.max_new_tokens = min(sequence.parameters.max_new_tokens, room)
        sequence.sampling = Sampling(
            sequence.parameters,
            sequence.prompt_tokens,
            vocabulary=self.vocabulary,
            end_tokens=self.end_tokens,
            constraint=sequence.constraint,
        )
        sequence.output = TextOutput(
            Detokenizer(self._tokenizer, sequence.prompt_tokens),
            StopStrings(sequence.parameters.stop),
            sequence.on_text,
            min_tokens=sequence.parameters.min_new_tokens,
        )
        # From here on the future answers to the engine alone: Future.cancel has no effect, Sequence.cancel has.
        if sequence.future.set_running_or_notify_cancel():
            self._arrived.append(sequence)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit, compute one forward, hand out its tokens. A failure ends only the sequences that it touches.

        What was cancelled, or is past its deadline, leaves before the forward.
        """
        while self._arrived:
            self._scheduler.add(self._arrived.popleft())
        self._scheduler.adapter_slots.pin(self.pinned_adapters)
        # Before the admission, so that those who wait get the slots of those who leave.
        self._end_stopped()
        admission = self._scheduler.admit()
        if admission.started:
            self._prepare(admission)
            # That may take a while, in which a sequence may have been cancelled.
            self._end_stopped()
        plan = self._scheduler.plan_step()
        if plan.tokens == 0:
            return
        try:
            chosen = self._forward.run(plan)
        except Exception as error:
            for sequence in plan.sequences:
                self._fail(sequence, error)
            return
        self.progress += 1
        self.counts.steps += 1
        self._scheduler.advance(plan)
        self._hand_out(plan, chosen)

    def abandon(self, error: Exception) -> None:
        """Fail every sequence with `error`; the engine can go on with new ones."""
        while self._arrived:
            self._scheduler.add(self._arrived.popleft())
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            self._fail(sequence, error)

    def _check(self, sequence: Sequence) -> None:
        prompt = sequence.prompt_tokens
        if not prompt:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="inputs")
        if min(prompt) < 0 or max(prompt) >= self.vocabulary:
            raise InvalidRequest(f"a prompt token is outside the vocabulary of {self.vocabulary}", param="inputs")
        if sequence.context_tokens + 1 > self.max_context:
            virtual = f", after {sequence.virtual_tokens} of its adapter," if sequence.virtual_tokens else ""
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens{virtual} and asks for {sequence.parameters.max_new_tokens} new "
                f"ones (max_new_tokens); this model's maximum context length is {self.max_context}, prompt and "
                "answer together. Shorten the prompt",
                param="inputs",
            )
        if sequence.adapter is not None:
            self._bank.check(sequence.adapter)

    def _end_stopped(self) -> None:
        now = time.monotonic()
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            reason = sequence.reason_to_stop(now)
            if reason is not None:
                self._fail(sequence, reason)

    def _reuse_key(self, sequence: Sequence) -> Hashable | None:
        """Sequences with an equal key may use each other's keys and values."""
        if self._kv_reuse == "off" or sequence.parameters.prompt_logprobs:
            # Who is to be told of each token of its prompt must compute them all.
            return None
        return (sequence.owner if self._kv_reuse == "owner" else None, sequence.adapter_id)

    def _prepare(self, admission: Admission) -> None:
        """Put into the slots what the newly admitted need there; where that fails, the adapter's sequences fail."""
        for parking in admission.parked:
            self._preparation.park(parking)
        spoiled: set[int] = set()
        for start in admission.started:
            slot = start.sequence.slot
            if slot is None:
                continue  # its adapter failed with the sequence before it
            try:
                self._preparation.make_ready(start, spoiled=spoiled)
            except Exception as error:
                spoiled.add(slot)
                self._fail_adapter(start.sequence, error)

    def _fail_adapter(self, sequence: Sequence, error: Exception) -> None:
        """Fail everybody who runs with the adapter of a sequence for which it could not be made ready."""
        adapter_id = sequence.slot_adapter_id
        if adapter_id is None:
            self._fail(sequence, error)
            return
        for user in self._scheduler.running:
            if user.adapter_id == adapter_id:
                self._fail(user, error)
        self._scheduler.adapter_slots.forget(adapter_id)

    def _hand_out(self, plan: StepPlan, chosen: list[Chosen]) -> None:
        for sequence, choice in zip(plan.emitting, chosen, strict=True):
            if not math.isfinite(choice.logprob):
                self._fail(sequence, TandemError(NOT_FINITE))
                continue
            try:
                finish_reason = self._append(sequence, choice)
            except Exception as error:  # the listener's or the tokenizer's failure is this sequence's alone
                self._fail(sequence, error)
                continue
            if finish_reason is not None:
                self._scheduler.remove(sequence)
                sequence.future.set_result(sequence.generated(finish_reason))

    def _append(self, sequence: Sequence, choice: Chosen) -> FinishReason | None:
        """Add a token to a sequence; returns why it is finished, if it is."""
        assert sequence.output is not None
        assert sequence.sampling is not None
        self.counts.generated_tokens += 1
        sequence.token_ids.append(choice.token)
        sequence.token_logprobs.append(choice.logprob)
        sequence.top_logprobs.append(choice.top)
        sequence.sampling.accept(choice.token)
        if sequence.sampling.is_end(choice.token):
            sequence.output.flush()
            return "stop"
        if sequence.output.push(choice.token):
            return "stop"
        if sequence.sampling.is_complete:
            sequence.output.flush()
            return "stop"
        if len(sequence.token_ids) >= sequence.max_new_tokens:
            return "stop" if sequence.output.flush() else "length"
        return None

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        slot = sequence.slot
        # Who only had to stop has left nothing wrong behind; what failed may have values that are not finite.
        is_sound = isinstance(error, AttemptStopped)
        self._scheduler.remove(sequence, keep_content=is_sound)
        self.progress += 1
        if slot is not None and not is_sound:
            self._kv.clear(slot)
        sequence.future.set_exception(error)


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text, by the model's generation config."""
    configured: int | list[int] | None = model.generation_config.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)
