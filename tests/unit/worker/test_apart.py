"""Adapters that no batch holds: as PEFT alone runs them, over the resident's weights, beside the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, OFTConfig, PeftConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from tandem.errors import AdapterMismatch
from tandem.specs import Task
from tests.tiny_models import build
from tests.unit.engine.adapter_folders import save_adapter
from worker.apart import TREES_KEPT, ApartAdapter, ApartAdapters, build_apart, read_served
from worker.engine.adapters.weights import AdapterWeights

# PEFT asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RANK_LIMIT = 8
TARGETS = ["q_proj", "down_proj"]
IDS = torch.arange(3, 15).unsqueeze(0)
ADAPTERS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "rotations": (OFTConfig, {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False}),
    "one rotation for all blocks": (OFTConfig, {"r": 0, "oft_block_size": 8, "block_share": True}),
    "a high rank": (LoraConfig, {"r": RANK_LIMIT + 1}),
    "a product of a high rank": (LoHaConfig, {"r": 3}),
}


@pytest.fixture(scope="module")
def new_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], PreTrainedModel]:
    """Gives the same tiny model, in memory of its own each time."""
    folder = build("tiny-llama", tmp_path_factory.mktemp("tiny-llama"))
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_apart_gives_what_peft_gives(
    name: str, new_base: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """Bit for bit, and the resident's weights are neither copied nor changed."""
    method, config = ADAPTERS[name]
    trained = save_adapter(new_base(), tmp_path, seed=3, spread=0.3, method=method, target_modules=TARGETS, **config)
    resident = new_base()
    plain = logits(resident)
    adapter = read_served("mine", tmp_path, resident, rank_limit=RANK_LIMIT)
    assert isinstance(adapter, ApartAdapter)

    tree = build_apart(adapter, resident)

    assert torch.equal(logits(tree), logits(trained))
    assert not torch.allclose(logits(tree), plain, atol=1e-2)
    assert torch.equal(logits(resident), plain)
    assert tree.get_input_embeddings().weight.data_ptr() == resident.get_input_embeddings().weight.data_ptr()


def test_what_the_batch_can_hold_goes_there(new_base: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    save_adapter(new_base(), tmp_path, seed=3, method=LoHaConfig, r=2, target_modules=TARGETS)
    assert isinstance(read_served("mine", tmp_path, new_base(), rank_limit=RANK_LIMIT), AdapterWeights)


def test_an_adapter_of_another_base_is_refused(new_base: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    method, config = ADAPTERS["rotations"]
    save_adapter(new_base(), tmp_path, seed=3, method=method, target_modules=TARGETS, **config)
    resident = new_base()
    adapter = read_served("mine", tmp_path, resident, rank_limit=RANK_LIMIT)
    assert isinstance(adapter, ApartAdapter)
    key = next(iter(adapter.tensors))
    for broken in (
        {key.replace("layers.0", "layers.7"): adapter.tensors[key]},
        {key: adapter.tensors[key][:1]},
        {key: adapter.tensors[key]},
    ):
        targets = ("model.layers.7.mlp.down_proj",) if "layers.7" in next(iter(broken)) else adapter.targets
        with pytest.raises(AdapterMismatch):
            build_apart(ApartAdapter("mine", adapter.config, targets, broken, ""), resident)


class Counted:
    """Stands for a batcher: counts its ends."""

    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def kept() -> tuple[ApartAdapters, list[Counted]]:
    made: list[Counted] = []

    def start(_adapter: ApartAdapter, _task: Task) -> Any:
        made.append(Counted())
        return made[-1]

    return ApartAdapters(start), made


def nameless(number: int) -> ApartAdapter:
    return ApartAdapter(str(number), {}, (), {}, "")


def test_the_least_recently_used_tree_leaves_first(kept: tuple[ApartAdapters, list[Counted]]) -> None:
    """And never one that is in use."""
    apart, made = kept
    with apart.use(nameless(0), "text-generation"):
        for number in range(1, TREES_KEPT + 2):
            with apart.use(nameless(number), "text-generation"):
                pass
    assert [each.stops for each in made] == [0, 1, 1, *[0] * (TREES_KEPT - 1)]
    with apart.use(nameless(0), "text-generation"):
        assert len(made) == TREES_KEPT + 2, "it is still there"
