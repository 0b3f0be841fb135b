"""Every method's update of linear layers, against PEFT's own forward: rows of a batch, each with its own adapter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config
from transformers.pytorch_utils import Conv1D

from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import SIZES, VOCABULARY, build_model
from worker.engine.adapters.bank import BASE, AdapterBank
from worker.engine.adapters.weights import AdapterWeights, read_adapter

pytestmark = [
    # peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft tells that it saves the head's base weight beside its adapter, and that it turns Conv1D's weight itself.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
]

TOKENS = 12
CLOSE = 1e-5
"""Largest difference of logits in float32, by their size: both sides add the same products in another order."""


def gpt2() -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    )


@dataclass(frozen=True)
class Family:
    """A model and the layers that its adapters update."""

    config: Callable[[], PreTrainedConfig]
    inputs: list[str]
    """Layers whose inputs IA3 scales."""
    outputs: list[str]
    """Layers whose outputs it scales: some with a bias, where the model has biases."""
    options: dict[str, Any] = field(default_factory=dict)
    is_transposed: bool = False
    """PEFT's LoHa and LoKr take no Conv1D."""

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        lora = {"r": 4, "lora_alpha": 8, "target_modules": [*self.outputs, *self.inputs]} | self.options
        return {
            "lora": lora,
            "rslora": lora | {"r": 8, "use_rslora": True, "target_modules": self.outputs},
            "dora": lora | {"use_dora": True},
            "rsdora": lora | {"r": 3, "use_dora": True, "use_rslora": True, "target_modules": self.outputs},
            "adalora": lora | {"method": AdaLoraConfig, "init_r": 6, "total_step": 9, "r": 8, "spread": 0.3},
            "vera": {"method": VeraConfig, "r": 16, "spread": 0.3, "target_modules": lora["target_modules"]},
            **({} if self.is_transposed else self.products),
            "ia3": {"method": IA3Config, "spread": 0.5, "feedforward_modules": self.inputs}
            | {"target_modules": lora["target_modules"]},
            "ia3-outputs": {"method": IA3Config, "spread": 0.5, "feedforward_modules": []}
            | {"target_modules": self.outputs},
        }

    @property
    def products(self) -> dict[str, dict[str, Any]]:
        """Whole and factored matrices on either side of LoKr's product."""
        every = {"target_modules": [*self.outputs, *self.inputs]}
        lokr = {"method": LoKrConfig, "alpha": 3, "spread": 0.3, "target_modules": self.outputs}
        return {
            "loha": every | {"method": LoHaConfig, "r": 4, "alpha": 6, "spread": 0.4},
            "lokr-whole": lokr | {"r": 8, "decompose_factor": 2},
            "lokr-one": lokr | {"r": 2},
            "lokr-both": lokr | {"r": 2, "decompose_both": True},
        }


FAMILIES = {
    "llama": Family(lambda: LlamaConfig(**SIZES), ["down_proj"], ["k_proj", "v_proj", "up_proj", "lm_head"]),
    "qwen2": Family(lambda: Qwen2Config(**SIZES), ["down_proj", "o_proj"], ["q_proj", "k_proj", "v_proj"]),
    "gpt2": Family(gpt2, ["mlp.c_proj"], ["c_attn", "c_fc"], is_transposed=True),
}


def tiny(family: str) -> PreTrainedModel:
    """Random weights, and biases that are not the zeros which models begin with."""
    model = build_model(FAMILIES[family].config())
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.3)
    return model


@dataclass
class Served:
    """A model that a bank has taken over."""

    model: PreTrainedModel
    bank: AdapterBank

    @classmethod
    def of(cls, model: PreTrainedModel, *, slots: int = 12) -> "Served":
        bank = AdapterBank(slots=slots, rank=64)
        bank.take_over(model, head=model.get_output_embeddings())
        return cls(model, bank)

    def logits(self, ids: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """[rows, tokens, vocabulary]: row i of the batch runs with adapter slot slots[i]."""
        by_token = [slot for slot in slots for _ in range(ids.shape[1])]
        with torch.inference_mode(), self.bank.step(by_token, list(range(len(by_token))), ids.device):
            return self.model(input_ids=ids).logits


@dataclass
class Case:
    """One family with an adapter of each method in its folder, and what PEFT makes of the prompts with each."""

    served: Served
    adapters: dict[str, AdapterWeights]
    prompts: torch.Tensor
    """[adapters + 1, TOKENS]; the last is the base model's."""
    expected: list[torch.Tensor]

    def load_all(self) -> list[int]:
        """Put adapter i into slot i; returns the batch's slots."""
        for slot, adapter in enumerate(self.adapters.values()):
            self.served.bank.load(slot, adapter)
        return [*range(len(self.adapters)), BASE]


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str = request.param
    methods = FAMILIES[name].methods
    prompts = torch.randint(1, VOCABULARY, (len(methods) + 1, TOKENS), generator=torch.Generator().manual_seed(2))
    base = tiny(name)
    adapters, expected = {}, []
    for index, (method, config) in enumerate(methods.items()):
        folder = tmp_path_factory.mktemp(method)
        trained = save_adapter(tiny(name), folder, seed=index, **config)
        adapters[method] = read_adapter(method, folder, base)
        with torch.no_grad():
            expected.append(trained(input_ids=prompts[index : index + 1]).logits[0])
    with torch.no_grad():
        expected.append(base(input_ids=prompts[-1:]).logits[0])
    return Case(Served.of(base), adapters, prompts, expected)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


def test_each_row_equals_peft_alone(case: Case) -> None:
    """LoRA, rsLoRA, DoRA, AdaLoRA, LoHa, LoKr, VeRA and IA3 in one forward, beside the base."""
    found = case.served.logits(case.prompts, case.load_all())

    for row, expected in zip(found, case.expected, strict=True):
        assert_close(row, expected)


def test_each_method_changes_the_logits(case: Case) -> None:
    """Otherwise the comparison above would prove nothing."""
    base = case.served.logits(case.prompts, [BASE] * len(case.prompts))

    for row, expected in zip(base[:-1], case.expected[:-1], strict=True):
        assert (row - expected).abs().max() > 1000 * CLOSE * expected.abs().max()


def test_a_base_row_is_not_changed_by_its_neighbours(case: Case) -> None:
    """Bit for bit: a factor of 1 and a sum of 0 change nothing."""
    slots = case.load_all()
    alone = case.served.logits(case.prompts, [BASE] * len(slots))
    mixed = case.served.logits(case.prompts, slots)

    assert torch.equal(mixed[-1], alone[-1])


def test_an_adapter_is_the_same_in_any_slot_after_any_other(case: Case) -> None:
    """Nothing of the evicted is left, of whatever method it was: neither weights nor scales nor shifts."""
    names, count = list(case.adapters), len(case.prompts)
    case.load_all()
    for index, name in enumerate(names):
        slot = (index + 3) % len(names)
        case.served.bank.load(slot, case.adapters[name])
        found = case.served.logits(case.prompts, [slot] * count)
        assert_close(found[index], case.expected[index])


def test_rows_that_stand_in_runs_get_the_same(case: Case) -> None:
    """An encoder's way: the texts of one adapter stand together, and each is multiplied with its own alone."""
    slots = case.load_all()
    with torch.inference_mode(), case.served.bank.step_in_runs([(slot, 1) for slot in slots]):
        found = case.served.model(input_ids=case.prompts).logits

    for row, expected in zip(found, case.expected, strict=True):
        assert_close(row, expected)


def test_in_bfloat16_each_row_is_as_near_to_float32_as_peft_is(tmp_path: Path) -> None:
    """Scales are kept in float32, as PEFT keeps them: in bfloat16 a scale near 1 has steps of 0.8 %."""
    for method in ("dora", "ia3"):
        config = FAMILIES["qwen2"].methods[method]
        trained = save_adapter(tiny("qwen2"), tmp_path / method, seed=4, **config)
        prompts = torch.randint(1, VOCABULARY, (8, TOKENS), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            exact = trained(input_ids=prompts).logits
            of_peft = trained.to(torch.bfloat16)(input_ids=prompts).logits
        base = tiny("qwen2").to(torch.bfloat16)
        served = Served.of(base)
        served.bank.load(2, read_adapter(method, tmp_path / method, base))

        found = served.logits(prompts, [2] * len(prompts))
        assert found.dtype is torch.bfloat16
        error = (found.float() - exact).square().mean().sqrt()
        assert error < 1.1 * (of_peft.float() - exact).square().mean().sqrt()


def test_conv1d_keeps_its_names_and_its_memory() -> None:
    """A twin for training is made of the state dict; the replacements stay what PEFT and transformers look for."""
    model = tiny("gpt2")
    before = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    served = Served.of(model)

    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == before
    assert isinstance(served.bank.linears["transformer.h.0.attn.c_attn"], Conv1D)
    assert served.bank.linears.keys() >= {"transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj", "lm_head"}
    twin = AutoModelForCausalLM.from_config(gpt2())
    twin.load_state_dict(model.state_dict(), assign=True)
    assert twin.transformer.h[0].attn.c_attn.weight.data_ptr() == before["transformer.h.0.attn.c_attn.weight"]


# peft suspects a fault of sharding where AdaLoRA has taken all ranks of a layer.
@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape:peft.utils.warning.PeftWarning")
# peft looks for the ranks that AdaLoRA kept by LoRA's rule too, under which they match nothing.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
def test_a_trained_adalora_has_the_ranks_that_training_left_it(tmp_path: Path) -> None:
    """Some layers lose ranks, one all of them; the scaling stays that of the rank that training began with."""
    config = FAMILIES["llama"].methods["adalora"] | {"target_modules": ["v_proj", "up_proj"]}
    model = tiny("llama")
    trained = save_adapter(model, tmp_path, seed=3, **config)
    layers = [name for name, module in model.named_modules() if name.endswith(("v_proj", "up_proj"))]
    keep = {f"{name}.lora_E": [True, False, True, True, False, index > 2] for index, name in enumerate(layers)}
    keep[f"{layers[1]}.lora_E"] = [False] * 6
    trained.peft_config["default"].rank_pattern = keep
    trained.save_pretrained(tmp_path)
    base = tiny("llama")
    adapter = read_adapter("mine", tmp_path, base)

    assert sorted({update.rank for update in adapter.modules.values()}) == [0, 3, 4]
    again = type(trained).from_pretrained(tiny("llama"), tmp_path)
    ids = torch.randint(1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = again(input_ids=ids).logits
    served = Served.of(base)
    served.bank.load(0, adapter)
    assert_close(served.logits(ids, [0]), expected)


def test_dora_and_its_lora_differ(tmp_path: Path) -> None:
    """DoRA's magnitude is no detail: without it the same matrices give other logits."""
    config = {"r": 4, "target_modules": ["q_proj"]}
    base = tiny("llama")
    adapters = []
    for use_dora in (False, True):
        save_adapter(tiny("llama"), tmp_path / str(use_dora), seed=1, method=LoraConfig, use_dora=use_dora, **config)
        adapters.append(read_adapter(str(use_dora), tmp_path / str(use_dora), base))
    plain, dora = (adapter.modules["model.layers.0.self_attn.q_proj"] for adapter in adapters)

    assert plain.output_scale is None
    assert dora.output_scale is not None
    assert dora.output_shift is None, "Llama's projections have no bias"
    assert dora.output_scale.shape == (64,)
