"""The dial's settings, as the worker hands them to its controller."""

import pytest
import torch

from tandem.errors import ConfigurationError
from tandem.settings import WorkerSettings
from worker.service import latency_target, pace_of
from worker.training.beside_pace import BesidePace
from worker.training.pace import LatencyTarget, TurnController


def test_the_settings_become_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds become seconds; nothing else changes."""
    monkeypatch.setenv("TANDEM_SERVING_SLOWDOWN", "2.5")
    monkeypatch.setenv("TANDEM_SERVING_GAP_MS", "250")
    monkeypatch.setenv("TANDEM_TRAINING_SHARE", "0.2")
    assert latency_target(WorkerSettings.read()) == LatencyTarget(2.5, gap_seconds=0.25, least_share=0.2)


@pytest.mark.parametrize(
    ("device", "setting", "kind"),
    [("cpu", "auto", BesidePace), ("cpu", "off", TurnController), ("cuda", "auto", TurnController)],
)
def test_both_compute_at_once_where_threads_have_priorities(
    device: str, setting: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, unless the setting says that they take turns; a GPU knows no thread's priority."""
    monkeypatch.setenv("TANDEM_TRAINING_BESIDE", setting)
    assert type(pace_of(WorkerSettings.read(), torch.device(device))) is kind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_SERVING_SLOWDOWN", "1.0"),
        ("TANDEM_SERVING_GAP_MS", "0"),
        ("TANDEM_TRAINING_SHARE", "1"),
        ("TANDEM_TRAININGS", "0"),
    ],
)
def test_a_setting_that_cannot_be_kept_stops_the_start(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can train without slowing anything down: the variable is named."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        WorkerSettings.read()
    assert raised.value.param == name
