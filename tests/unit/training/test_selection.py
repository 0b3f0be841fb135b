"""When a training stops early, and which evaluation is its best: against transformers' own callback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from worker.training.selection import Selection


def test_the_lowest_loss_is_the_best() -> None:
    selection = Selection(patience=None, threshold=0.0)
    assert [selection.add(step, loss) for step, loss in ((2, 3.0), (4, 2.0), (6, 2.0), (8, 2.5))] == [
        *(True, True, False, False)
    ]
    assert selection.best == (4, 2.0)
    assert not selection.is_over


def test_the_evaluation_before_the_first_step_is_no_result_of_the_training() -> None:
    """Were the base the best, there would be no adapter to publish."""
    selection = Selection(patience=1, threshold=0.0)
    assert not selection.add(0, 1.0)
    assert selection.add(2, 5.0)
    assert not selection.is_over
    assert selection.best == (2, 5.0)


def waits_of_transformers(losses: list[float], threshold: float) -> list[int]:
    """The callback's counter after each evaluation; Trainer notes the best loss after it."""
    callback = EarlyStoppingCallback(early_stopping_patience=3, early_stopping_threshold=threshold)
    state, waits = TrainerState(), []
    for loss in losses:
        callback.check_metric_value(Arguments, state, TrainerControl(), loss)
        waits.append(callback.early_stopping_patience_counter)
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric = loss
    return waits


class Arguments:
    greater_is_better = False


@given(st.lists(st.sampled_from([1.0, 1.05, 1.2, 2.0, 0.5]), min_size=1, max_size=12), st.sampled_from([0.0, 0.1]))
def test_it_stops_when_transformers_would(losses: list[float], threshold: float) -> None:
    """For every course of losses, at the same evaluation; and a training that goes on counts on from its history."""
    selection = Selection(patience=3, threshold=threshold)
    over = []
    for number, loss in enumerate(losses, start=1):
        selection.add(number, loss)
        over.append(selection.is_over)
    assert over == [wait >= 3 for wait in waits_of_transformers(losses, threshold)]
    resumed = Selection(patience=3, threshold=threshold)
    resumed.replay({"type": "evaluation", "step": step, "loss": loss} for step, loss in enumerate(losses, start=1))
    assert (resumed.is_over, resumed.best) == (selection.is_over, selection.best)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_is_evaluations_in_a_row(patience: int) -> None:
    selection = Selection(patience=patience, threshold=0.0)
    for step, loss in enumerate((3.0, 4.0, 2.0, 2.5), start=1):
        selection.add(step, loss)
    assert selection.is_over is (patience == 1)
