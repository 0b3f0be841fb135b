"""Runs one planned step through the model: a plan of sequences in, each one's next token out."""

from functools import partial

import torch
from transformers import PreTrainedModel

from worker.engine.adapters.bank import BASE, AdapterBank
from worker.engine.adapters.prefix import VirtualTokens
from worker.engine.decode_graphs import DecodeGraphs, DecodeStep
from worker.engine.kv.attention import over_slots
from worker.engine.kv.layout import ChunkRows, SlotStep, slot_step
from worker.engine.kv.slots import KVSlots
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.recording import Recording
from worker.engine.scheduling.step_plan import PrefillChunk, StepPlan
from worker.engine.sequence import Sequence
from worker.engine.tokens.prompt_logprobs import note_prompt_logprobs, told_rows
from worker.engine.tokens.sampler import Chosen, choose, largest
from worker.engine.tokens.sampling import Sampling


class Forward:
    """The model, its KV slots and its adapter bank, run together."""

    def __init__(self, model: PreTrainedModel, kv: KVSlots, bank: AdapterBank) -> None:
        self._model = model
        self._kv = kv
        self._bank = bank
        self._largest = largest if bank.kernels is None else bank.kernels.largest
        self._graphs: DecodeGraphs | None = None
        if isinstance(kv, TokenMajorSlots) and kv.device.type == "cuda":
            record = partial(Recording, memory=torch.cuda.graph_pool_handle())
            self._graphs = DecodeGraphs(model, kv, bank, record=record)

    def run(self, plan: StepPlan) -> list[Chosen]:
        """Compute the plan's rows; returns one token for each of `plan.emitting`, in that order."""
        tokens = [sequence.last_token for sequence in plan.decode]
        positions = [sequence.next_position for sequence in plan.decode]
        adapters = [_adapter_slot(sequence) for sequence in plan.decode]
        emitting = list(range(len(plan.decode)))
        chunks = []
        for chunk in plan.chunks:
            assert chunk.sequence.slot is not None
            chunks.append(
                ChunkRows(chunk.sequence.slot, chunk.start, len(tokens), len(tokens) + chunk.end - chunk.start)
            )
            tokens += _chunk_tokens(chunk)
            positions += range(chunk.start, chunk.end)
            adapters += [_adapter_slot(chunk.sequence)] * (chunk.end - chunk.start)
            if chunk.completes_prompt:
                emitting.append(len(tokens) - 1)
        told = told_rows(plan)
        emitting += [row for row, _ in told]
        slots = [sequence.slot for sequence in plan.decode if sequence.slot is not None]
        logits = None
        if self._graphs is not None and not chunks:
            logits = self._graphs.run(DecodeStep(tokens, positions, slots, adapters))
        if logits is None:
            step = slot_step(self._kv, slots, positions[: len(slots)], tuple(chunks))
            with self._bank.step(adapters, emitting, self._kv.device):
                logits = self._logits(self._inputs(tokens, plan), positions, emitting, step)
        choosing = len(emitting) - len(told)
        note_prompt_logprobs(logits[choosing:], told)
        return choose(logits[:choosing], [_sampling(sequence) for sequence in plan.emitting], self._largest)

    def _inputs(self, tokens: list[int], plan: StepPlan) -> dict[str, torch.Tensor]:
        """The rows' token ids; their embeddings where an adapter brings some of its own."""
        ids = torch.tensor([tokens]).to(self._kv.device, non_blocking=True)
        if not any(chunk.start < chunk.sequence.virtual_tokens for chunk in plan.chunks):
            return {"input_ids": ids}
        embeddings = self._model.get_input_embeddings()(ids)
        first = len(plan.decode)
        for chunk in plan.chunks:
            virtual = range(chunk.start, min(chunk.end, chunk.sequence.virtual_tokens))
            if virtual:
                assert chunk.sequence.adapter is not None
                prefix = chunk.sequence.adapter.prefix
                assert isinstance(prefix, VirtualTokens), "a trained prefix of keys and values is never computed"
                rows = slice(first, first + len(virtual))
                embeddings[0, rows] = prefix.embeddings[virtual.start : virtual.stop].to(
                    embeddings, non_blocking=True
                )
            first += chunk.end - chunk.start
        return {"inputs_embeds": embeddings}

    def _logits(
        self, inputs: dict[str, torch.Tensor], positions: list[int], emitting: list[int], step: SlotStep
    ) -> torch.Tensor:
        """[len(emitting), vocabulary]"""
        device = self._kv.device
        with over_slots(step):
            output = self._model(
                **inputs,
                position_ids=torch.tensor([positions]).to(device, non_blocking=True),
                use_cache=False,
                logits_to_keep=torch.tensor(emitting, dtype=torch.int64).to(device, non_blocking=True),
            )
        logits: torch.Tensor = output.logits[0]
        return logits


def _chunk_tokens(chunk: PrefillChunk) -> list[int]:
    """A chunk's token ids; for a virtual one that of the prompt's first token, whose embedding is not used."""
    virtual = chunk.sequence.virtual_tokens
    prompt = chunk.sequence.prompt_tokens
    nothing = [prompt[0]] * max(0, min(chunk.end, virtual) - chunk.start)
    return [*nothing, *prompt[max(0, chunk.start - virtual) : max(0, chunk.end - virtual)]]


def _adapter_slot(sequence: Sequence) -> int:
    return BASE if sequence.adapter_slot is None else sequence.adapter_slot


def _sampling(sequence: Sequence) -> Sampling:
    assert sequence.sampling is not None, "Engine.submit gives every sequence its sampling"
    return sequence.sampling
