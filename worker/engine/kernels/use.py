"""A model's operations in kernels, as long as that changes nothing."""

import logging

from transformers import PreTrainedModel

from worker.engine.kernels.choice import Kernels
from worker.engine.kernels.replacement import Replaced
from worker.engine.kv.choice import row_attention_for
from worker.engine.self_check import changed_logits

log = logging.getLogger(__name__)


def take_kernels(model: PreTrainedModel, kernels: Kernels) -> Kernels | None:
    """Replaces what the kernels know in a model that an engine has taken over; returns them for its slots.

    A few tokens are computed before and after. Where the logits differ, everything stays as it was, the log says why,
    and there are no kernels for the slots either: None.
    """
    replaced: list[Replaced] = []
    fault = changed_logits(
        model, lambda: replaced.append(Replaced(model, kernels)), row_attention_for(model, kernels)
    )
    if fault is None:
        log.info("%d parts of %s run in kernels", len(replaced[0].modules), type(model).__name__)
        return kernels
    for each in replaced:
        each.undo()
    log.warning("%s runs without kernels: %s", type(model).__name__, fault)
    return None
