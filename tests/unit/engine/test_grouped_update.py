"""Updates as grouped products: the rows sorted by adapter, and what comes of it.

On a CPU torch computes grouped products too, in a loop; the kernel itself is for tests/gpu.
"""

import pytest
import torch

from tests.unit.engine.served_adapters import served_adapter
from tests.unit.engine.tiny_models import FAMILIES, build_model, random_prompts
from worker.engine.adapters import layer_slots
from worker.engine.adapters.grouped_update import (
    group_rows,
    grouping_fault,
    sorted_rows,
    trial_difference,
    with_grouped_update,
)

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings(
    # peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def test_rows_stand_by_slot_with_the_base_last() -> None:
    order, back, ends = sorted_rows([2, -1, 0, 2, -1], 4)

    assert order == [2, 0, 3, 1, 4]
    assert [order[place] for place in back] == [0, 1, 2, 3, 4]
    assert ends == [1, 1, 3, 3]


def test_each_row_gets_its_own_adapter_and_the_base_keeps_its_bits() -> None:
    assert trial_difference(torch.bfloat16, CPU, rank=8, inputs=32, outputs=48) is None


def test_rows_of_the_base_alone_stay_as_they_are() -> None:
    output = torch.randn(3, 16)
    rows = group_rows([-1, -1, -1], 2, CPU)

    found = with_grouped_update(torch.randn(3, 8), output, torch.randn(16, 8), torch.randn(16, 16), rows)

    assert torch.equal(found, output)


def test_one_adapters_overflow_does_not_reach_another_row() -> None:
    a, b = torch.ones(16, 8), torch.ones(16, 16)
    b[8:] = torch.inf

    found = with_grouped_update(torch.ones(3, 8), torch.zeros(3, 16), a, b, group_rows([0, 1, -1], 2, CPU))

    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()
    assert not found[2].any()


def test_a_cpu_keeps_the_masked_product() -> None:
    assert grouping_fault(torch.bfloat16, CPU, 8, 64, 64) == "grouped products are for CUDA devices, not for cpu"


def test_mixed_adapters_write_the_same_text_in_groups(tmp_path, crowd, monkeypatch) -> None:
    """The whole engine, with every layer's pairs in groups, against the masked product."""
    adapters = [None, *(served_adapter(tmp_path, f"adapter-{seed}", seed=seed) for seed in range(3))]
    prompts = random_prompts((5, 17, 40, 9, 23, 31))
    texts = []
    for fault in ("masked", None):
        monkeypatch.setattr(layer_slots, "grouping_fault", lambda *_shape, fault=fault: fault)
        together = crowd(build_model(FAMILIES["llama"]()))
        sequences = [
            together.submit(prompt, adapter=adapters[index % 4], max_new_tokens=12)
            for index, prompt in enumerate(prompts)
        ]
        together.run()
        texts.append([sequence.future.result(0).token_ids for sequence in sequences])

    assert texts[0] == texts[1]
