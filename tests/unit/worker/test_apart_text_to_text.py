"""Adapters of encoder-decoders: each in a tree over the resident's weights, written with as PEFT alone writes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from tandem.errors import AdapterMismatch, InvalidRequest
from tandem.specs import Task
from tests.tiny_models import build
from tests.unit.engine.adapter_folders import save_adapter
from worker.apart import build_apart, read_text_to_text
from worker.pipeline_loading import pipeline_over

pytestmark = [
    # PEFT asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It looks for the ranks that AdaLoRA kept by LoRA's rule too, under which they match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

TEXTS = ["the cat sat on the mat", "rain fell on the old town all night", "Anna Smith works at the bank"]
WRITING = {"max_new_tokens": 8, "num_beams": 2}
ADAPTERS: dict[str, tuple[str, type[PeftConfig], dict[str, Any]]] = {
    "lora": ("tiny-t5", LoraConfig, {"r": 4, "target_modules": ["q", "v", "wi"]}),
    "lora of patterns": ("tiny-t5", LoraConfig, {"r": 4, "target_modules": ["q", "v"], "rank_pattern": {"v": 2}}),
    "lora of BART": ("tiny-bart", LoraConfig, {"r": 4}),
    "lora of Marian": ("tiny-marian", LoraConfig, {"r": 4, "target_modules": ["q_proj", "fc1"]}),
    "dora": ("tiny-t5", LoraConfig, {"r": 4, "use_dora": True}),
    "adalora": ("tiny-t5", AdaLoraConfig, {"init_r": 6, "target_r": 3, "total_step": 9}),
    "loha": ("tiny-t5", LoHaConfig, {"r": 3}),
    "lokr": ("tiny-t5", LoKrConfig, {"r": 2, "decompose_both": True, "decompose_factor": 4}),
    "vera": ("tiny-t5", VeraConfig, {"r": 8}),
    "oft": ("tiny-t5", OFTConfig, {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False}),
    "ia3": ("tiny-t5", IA3Config, {}),
}


@pytest.fixture(autouse=True, scope="module")
def _one_compute_thread() -> Iterator[None]:
    """OpenMP's threads spin while they wait for each other, which beside any other process takes most of a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")
    return lambda name: root / name if (root / name).exists() else build(name, root / name)


def model_of(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def written(model: Any, base: Path) -> list[str]:
    """What `model` writes, by its own `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        (output,) = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **WRITING)
        texts.append(tokenizer.decode(output, skip_special_tokens=True))
    return texts


def rows(pipeline: Any, name: str = "generated_text") -> list[str]:
    return [row[name] for row in pipeline(list(TEXTS), **WRITING)]


def saved(base: Path, folder: Path, name: str) -> None:
    _, method, config = ADAPTERS[name]
    save_adapter(model_of(base), folder, seed=3, spread=0.3, method=method, task_type="SEQ_2_SEQ_LM", **config)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_method_that_updates_layers_writes_as_peft_does(
    name: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """From a folder that PEFT wrote, the texts of its own `generate`; the resident is neither copied nor changed."""
    base = base_of(ADAPTERS[name][0])
    saved(base, tmp_path, name)
    expected = written(PeftModel.from_pretrained(model_of(base), str(tmp_path)).eval(), base)
    resident = model_of(base)
    plain = written(resident, base)

    adapter = read_text_to_text("mine", tmp_path, resident)
    tree = build_apart(adapter, resident)
    pipeline = pipeline_over(tree, AutoTokenizer.from_pretrained(base), "text2text-generation", device=tree.device)

    assert rows(pipeline) == expected
    assert expected != plain
    assert written(resident, base) == plain
    assert tree.get_input_embeddings().weight.data_ptr() == resident.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("task", "name", "before"),
    [("summarization", "summary_text", "summarize: "), ("translation", "translation_text", "")],
)
def test_the_other_tasks_of_the_base_are_done_by_the_same_adapter(
    task: Task, name: str, before: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each by its own pipeline, which puts the base's words for the task before a text."""
    base = base_of("tiny-t5")
    saved(base, tmp_path, "lora")
    resident = model_of(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tree = build_apart(read_text_to_text("mine", tmp_path, resident), resident)
    pipeline = pipeline_over(tree, tokenizer, task, device=tree.device)
    alone = PeftModel.from_pretrained(model_of(base), str(tmp_path)).eval()
    for text, found in zip(TEXTS, rows(pipeline, name), strict=True):
        ids = torch.tensor([tokenizer(before + text)["input_ids"]])
        (output,) = cast("Any", alone).generate(input_ids=ids, attention_mask=torch.ones_like(ids), **WRITING)
        assert found == tokenizer.decode(output, skip_special_tokens=True)


def test_an_adapter_of_another_base_is_refused(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    saved(base_of("tiny-t5"), tmp_path, "lora")
    bart = model_of(base_of("tiny-bart"))
    with pytest.raises(AdapterMismatch, match="which is no linear layer of the model"):
        build_apart(read_text_to_text("mine", tmp_path, bart), bart)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("loha", {"r": 10**9}, "r is 1000000000 in adapter_config.json, and no weight is larger than"),
        ("lora of patterns", {"rank_pattern": {"v": 10**9}}, "rank_pattern of v is 1000000000"),
        ("adalora", {"init_r": "6"}, "init_r is '6'"),
        ("lokr", {"decompose_factor": "4"}, "PEFT cannot build it by its config"),
    ],
)
def test_a_config_that_does_not_agree_with_the_weights_takes_no_memory(
    name: str, fields: dict[str, Any], reason: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of("tiny-t5")
    saved(base, tmp_path, name)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    resident = model_of(base)
    with pytest.raises(InvalidRequest, match=reason):
        build_apart(read_text_to_text("mine", tmp_path, resident), resident)


def test_virtual_tokens_are_refused_by_name(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    resident = model_of(base_of("tiny-t5"))
    config = PromptTuningConfig(num_virtual_tokens=4, task_type="SEQ_2_SEQ_LM")
    get_peft_model(model_of(base_of("tiny-t5")), config).save_pretrained(str(tmp_path))
    with pytest.raises(InvalidRequest, match="peft_type is 'PROMPT_TUNING'; LORA, ADALORA"):
        read_text_to_text("mine", tmp_path, resident)
