"""Tells a trainer where its steps begin and end: transformers' Trainer has no method to override there."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Stepping(Protocol):
    """What is told."""

    def begin_training(self) -> None: ...
    def at_step_end(self) -> None: ...
    def end_turn(self) -> None: ...
    def end_step(self) -> None: ...


class Boundaries(TrainerCallback):
    def __init__(self, trainer: Stepping) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.begin_training()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.at_step_end()  # of the step before, with all that was logged and evaluated after it

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._trainer.end_turn()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - a callback's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self._trainer.end_step()
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps' metrics, also when logging_steps does not divide them
