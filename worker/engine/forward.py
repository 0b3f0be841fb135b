"""Runs one planned step through the model: a plan of sequences in, each one's next token out."""

import torch
from transformers import PreTrainedModel

from worker.engine.adapter_bank import BASE, AdapterBank
from worker.engine.attention import ChunkRows, SlotStep, decode_rows
from worker.engine.kv_slots import KVSlots
from worker.engine.sampler import Chosen, Draw, choose
from worker.engine.scheduler import StepPlan
from worker.engine.sequence import Sequence


class Forward:
    """The model, its KV slots and its adapter bank, run together."""

    def __init__(self, model: PreTrainedModel, kv: KVSlots, bank: AdapterBank) -> None:
        self._model = model
        self._kv = kv
        self._bank = bank

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
            tokens += chunk.sequence.prompt_tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            adapters += [_adapter_slot(chunk.sequence)] * (chunk.end - chunk.start)
            if chunk.completes_prompt:
                emitting.append(len(tokens) - 1)
        slots = [sequence.slot for sequence in plan.decode if sequence.slot is not None]
        decode = decode_rows(self._kv, slots, positions[: len(slots)]) if slots else None
        step = SlotStep(self._kv, decode, tuple(chunks))
        with self._bank.step(adapters, emitting, self._kv.device):
            logits = self._logits(tokens, positions, emitting, step)
        return choose(logits, [_draw(sequence) for sequence in plan.emitting])

    def _logits(self, tokens: list[int], positions: list[int], emitting: list[int], step: SlotStep) -> torch.Tensor:
        """[len(emitting), vocabulary]"""
        device = self._kv.device
        output = self._model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(emitting, dtype=torch.int64, device=device),
            slot_step=step,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _adapter_slot(sequence: Sequence) -> int:
    return BASE if sequence.adapter_slot is None else sequence.adapter_slot


def _draw(sequence: Sequence) -> Draw | None:
    """None for greedy choice; otherwise the sequence's next random number."""
    if sequence.parameters.temperature == 0.0:
        return None
    return Draw(sequence.parameters, sequence.draws.random())
