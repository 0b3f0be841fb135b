"""An adapter's folder is checked before it is served, and what is at fault is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from tandem.errors import AdapterMismatch, InvalidModel, InvalidRequest, TandemError, UnsupportedTask
from tests.unit.encoders.adapter_folders import RECIPES, save_adapter, save_body
from worker.encoders.encoder_adapter import read_encoder_adapter
from worker.engine.adapters.peft_updates import RankAboveLimit

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bodies")
    return {name: save_body(name, folder / name) for name in ("bert", "deberta-v2")}


@pytest.fixture(scope="module")
def made(bodies: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a good adapter of BERT."""
    folder = tmp_path_factory.mktemp("adapters") / "mood"
    save_adapter(bodies["bert"], folder, RECIPES["mood"], seed=1)
    return folder


@pytest.fixture(scope="module")
def body(bodies: dict[str, Path]) -> PreTrainedModel:
    return AutoModel.from_pretrained(bodies["bert"])


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(made, tmp_path / "mood"))


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Set weights by their key's end, or drop them."""
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    for end, value in changes.items():
        (key,) = [key for key in weights if key.endswith(end.replace("__", "."))] or [end]
        weights.pop(key, None)
        if value is not None:
            weights[key] = value
    save_file(weights, path)


def refused(error: type[TandemError], folder: Path, body: PreTrainedModel, **options: Any) -> str:
    with pytest.raises(error) as refusal:
        read_encoder_adapter("mine", folder, body, **options)
    assert type(refusal.value) is error
    assert refusal.value.param == "adapter"
    assert "mine" in refusal.value.message
    return refusal.value.message


def test_a_good_adapter_holds_its_updates_its_head_and_its_labels(folder: Path, body: PreTrainedModel) -> None:
    adapter = read_encoder_adapter("mine", folder, body)
    assert adapter.task == "text-classification"
    assert set(adapter.weights.modules) == {
        f"encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")
    }
    assert adapter.head.config.id2label == {0: "sad", 1: "glad", 2: "calm"}
    assert set(adapter.head.state_dict()) == {"classifier.weight", "classifier.bias"}
    assert not adapter.head.training


def test_the_head_takes_the_bodys_dtype(folder: Path, bodies: dict[str, Path]) -> None:
    adapter = read_encoder_adapter("mine", folder, AutoModel.from_pretrained(bodies["bert"], dtype=torch.bfloat16))
    assert {weight.dtype for weight in adapter.head.parameters()} == {torch.bfloat16}


def test_an_adapter_of_another_architecture_is_refused(folder: Path, bodies: dict[str, Path]) -> None:
    message = refused(AdapterMismatch, folder, AutoModel.from_pretrained(bodies["deberta-v2"]))
    assert "trained on another base model: a bert, not a deberta-v2" in message


def test_an_adapter_of_a_body_of_other_sizes_is_refused(folder: Path, tmp_path: Path) -> None:
    other = AutoModel.from_pretrained(save_body("bert", tmp_path / "other", intermediate_size=48))
    message = refused(AdapterMismatch, folder, other)
    assert "encoder.layer.0.intermediate.dense.weight has the shape (64, 32) there, (48, 32) here" in message


def test_a_head_that_needs_a_pooler_is_refused_on_a_body_without(folder: Path, bodies: dict[str, Path]) -> None:
    body = AutoModel.from_pretrained(bodies["bert"], add_pooling_layer=False)
    message = refused(InvalidModel, folder, body)
    assert "BertForSequenceClassification reads its body's pooler.dense.weight" in message


def test_a_head_that_needs_no_pooler_is_served_on_a_body_without(bodies: dict[str, Path], tmp_path: Path) -> None:
    save_adapter(bodies["bert"], tmp_path / "entities", RECIPES["entities"], seed=1)
    body = AutoModel.from_pretrained(bodies["bert"], add_pooling_layer=False)
    assert read_encoder_adapter("mine", tmp_path / "entities", body).task == "token-classification"


def test_a_missing_head_is_refused_with_what_training_must_save(bodies: dict[str, Path], tmp_path: Path) -> None:
    """PEFT saves DeBERTa's `classifier` by itself, but not the `pooler` before it, which is of the head there."""
    folder = tmp_path / "mood"
    save_adapter(bodies["deberta-v2"], folder, RECIPES["mood"], seed=1, modules_to_save=["classifier"])
    message = refused(InvalidRequest, folder, AutoModel.from_pretrained(bodies["deberta-v2"]))
    assert "lacks the weights pooler.dense.bias, pooler.dense.weight of its head" in message
    assert "modules_to_save = ['pooler', 'classifier']" in message


def test_a_trained_part_of_the_body_is_refused(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mood"
    save_adapter(bodies["bert"], folder, RECIPES["mood"], seed=1, modules_to_save=["classifier", "pooler"])
    message = refused(InvalidRequest, folder, AutoModel.from_pretrained(bodies["bert"]))
    assert "brings bert.pooler.dense.bias, bert.pooler.dense.weight, which is no part of" in message


def test_an_update_of_the_head_is_refused(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mood"
    lora = {"target_modules": ["value_proj", "pooler.dense"], "modules_to_save": ["classifier"]}
    save_adapter(bodies["deberta-v2"], folder, RECIPES["mood"], seed=1, **lora)
    message = refused(InvalidRequest, folder, AutoModel.from_pretrained(bodies["deberta-v2"]))
    assert "has LoRA weights of its head (base_model.model.pooler.dense.lora_A.weight)" in message


def test_a_config_with_other_labels_than_the_head_is_refused(folder: Path, body: PreTrainedModel) -> None:
    change_json(folder / "config.json", id2label={"0": "no", "1": "yes"})
    message = refused(InvalidRequest, folder, body)
    assert "classifier.bias has the shape (3,), but by config.json it is (2,)" in message


@pytest.mark.parametrize("content", [None, "no JSON", "[1]", '{"model_type": "unheard-of"}'])
def test_a_folder_without_a_readable_config_is_refused(folder: Path, body: PreTrainedModel, content: Any) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert "config.json" in refused(InvalidRequest, folder, body)


def test_another_task_type_is_refused(folder: Path, body: PreTrainedModel) -> None:
    change_json(folder / "adapter_config.json", task_type="CAUSAL_LM")
    message = refused(UnsupportedTask, folder, body)
    served = "SEQ_CLS, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION"
    assert f"task_type 'CAUSAL_LM'; on an encoder {served} are served" in message


def test_a_rank_above_the_limit_is_refused(folder: Path, body: PreTrainedModel) -> None:
    assert "rank 4 of bert.encoder.layer.0" in refused(RankAboveLimit, folder, body, rank_limit=3)


def test_an_option_that_is_not_served_is_refused(folder: Path, body: PreTrainedModel) -> None:
    change_json(folder / "adapter_config.json", use_dora=True)
    assert "use_dora is set" in refused(InvalidRequest, folder, body)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_that_is_not_finite_is_refused(folder: Path, body: PreTrainedModel, value: float) -> None:
    change_weights(folder, classifier__bias=torch.tensor([0.0, value, 0.0]))
    assert "classifier.bias holds values that are not finite" in refused(InvalidRequest, folder, body)


def test_a_head_that_overflows_the_bodys_dtype_is_refused(folder: Path, bodies: dict[str, Path]) -> None:
    change_weights(folder, classifier__bias=torch.tensor([0.0, 1e6, 0.0]))
    body = AutoModel.from_pretrained(bodies["bert"], dtype=torch.float16)
    assert "classifier.bias overflow torch.float16" in refused(InvalidRequest, folder, body)


def test_a_head_with_an_unknown_weight_is_refused(folder: Path, body: PreTrainedModel) -> None:
    change_weights(folder, **{"base_model.model.extra.weight": torch.zeros(2)})
    assert "brings extra.weight, which is no part" in refused(InvalidRequest, folder, body)


def test_a_folder_of_pickles_is_not_read(folder: Path, body: PreTrainedModel) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.safetensors cannot be read" in refused(InvalidRequest, folder, body)
