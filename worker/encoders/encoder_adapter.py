"""An encoder's adapter on the host: updates of its body's linear layers, and the head of its own that it may have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tandem.errors import UnsupportedTask
from tandem.specs import MAX_LORA_RANK
from tandem.specs.finetune import EMBEDDING
from tandem.specs.peft_config import KEY_PREFIX, LINEAR_METHODS, MODEL_CONFIG_FILE, unserved
from worker.encoders.adapter_heads import BodyStandIn, headed_model, load_head, put_stand_in
from worker.engine.adapters.linear_update import linear_layers
from worker.engine.adapters.peft_folder import read_config, read_tensors, refusal
from worker.engine.adapters.peft_updates import is_of_a_layer, linear_updates
from worker.engine.adapters.weights import AdapterWeights

TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""PEFT's task type → the task that its adapters do."""
HEADLESS = frozenset({"FEATURE_EXTRACTION"})
"""Those that change the body alone."""

HEAD_FIELDS = frozenset({"modules_to_save"})
"""Fields of adapter_config.json that say which parts of the head were trained; the weights' keys say the same."""


@dataclass(frozen=True, eq=False)
class AdapterHead:
    """What an adapter puts on the body."""

    model: PreTrainedModel
    """The library's headed class over `stand_in`, on the body's device in the body's dtype. One thread at a time."""
    stand_in: BodyStandIn


@dataclass(frozen=True, eq=False)
class EncoderAdapter:
    """A published, immutable adapter. Two with the same id hold the same weights."""

    id: str
    task: str
    """The one that it was trained for."""
    weights: AdapterWeights
    """Its updates of the body's linear layers; none if it trained its head alone."""
    own_head: AdapterHead | None
    """None where it makes embeddings, as the body without it does."""

    @property
    def changes_body(self) -> bool:
        """Whether it needs a slot of the body's bank: not if it trained its head alone."""
        return bool(self.weights.modules)

    @property
    def head(self) -> PreTrainedModel:
        """Raises ValueError where it has none."""
        return self._own_head.model

    @property
    def stand_in(self) -> BodyStandIn:
        """Of its head's body; raises as `head` does."""
        return self._own_head.stand_in

    @property
    def _own_head(self) -> AdapterHead:
        if self.own_head is None:
            raise ValueError(f"adapter {self.id!r} has no head")
        return self.own_head

    def check_does(self, task: str) -> None:
        """Raise UnsupportedTask unless it does `task`."""
        if task != self.task and not (self.task in EMBEDDING and task in EMBEDDING):
            raise UnsupportedTask(f"adapter {self.id!r} does {self.task}, not {task}", param="task")


def read_encoder_adapter(
    adapter_id: str, folder: Path, body: PreTrainedModel, *, rank_limit: int = MAX_LORA_RANK
) -> EncoderAdapter:
    """Read and check a folder for the resident `body`; call it outside the batcher's thread.

    `folder` holds what PEFT writes (adapter_config.json, adapter_model.safetensors) and, of a model with a head, its
    config.json.

    Raises:
        UnsupportedTask: its task_type is none of `TASKS`.
        InvalidRequest: its files cannot be served, or a rank is above `rank_limit`; it names what is at fault.
        AdapterMismatch: it was trained on another base model.
        InvalidModel: its head cannot be put on this body.
    """
    config = read_config(adapter_id, folder, methods=LINEAR_METHODS, also_served=HEAD_FIELDS)
    task_type = config.get("task_type")
    if task_type not in TASKS:
        raise UnsupportedTask(
            f"adapter {adapter_id!r} has task_type {task_type!r}; on an encoder {', '.join(TASKS)} are served",
            param="adapter",
        )
    if task_type in HEADLESS:
        return _headless_adapter(adapter_id, folder, config, body, rank_limit)
    head = headed_model(adapter_id, task_type, _model_config(adapter_id, folder), body)
    of_layers, saved = _parted(read_tensors(adapter_id, folder))
    weights = _body_weights(adapter_id, of_layers, config, head, body, rank_limit)
    stand_in = put_stand_in(head, body.device)
    load_head(adapter_id, head, saved, device=body.device, dtype=body.dtype)
    return EncoderAdapter(adapter_id, TASKS[task_type], weights, AdapterHead(head, stand_in))


def _headless_adapter(
    adapter_id: str, folder: Path, config: dict[str, Any], body: PreTrainedModel, rank_limit: int
) -> EncoderAdapter:
    """One that was trained on the body itself, so that PEFT's paths are the body's own."""
    if reason := unserved(config, methods=LINEAR_METHODS):
        raise refusal(adapter_id, reason)
    of_layers, saved = _parted(read_tensors(adapter_id, folder))
    if saved:
        raise refusal(
            adapter_id, f"it brings {', '.join(sorted(saved))}, which is no update of a layer: it can have no head"
        )
    updates = linear_updates(adapter_id, of_layers, config, linear_layers(body), rank_limit=rank_limit)
    return EncoderAdapter(adapter_id, TASKS[config["task_type"]], AdapterWeights(adapter_id, updates), None)


def _model_config(adapter_id: str, folder: Path) -> PreTrainedConfig:
    path = folder / MODEL_CONFIG_FILE
    if not path.is_file():
        raise refusal(adapter_id, f"it has no {MODEL_CONFIG_FILE}: the trained model's config, with its labels")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise refusal(adapter_id, f"{MODEL_CONFIG_FILE} cannot be read ({error})") from error
    return config


def _parted(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of updated layers by PEFT's keys, and the saved modules' by their names in the headed model."""
    of_layers = {key: tensor for key, tensor in tensors.items() if is_of_a_layer(key)}
    saved = {key.removeprefix(KEY_PREFIX): tensor for key, tensor in tensors.items() if key not in of_layers}
    return of_layers, saved


def _body_weights(
    adapter_id: str,
    of_layers: dict[str, Tensor],
    config: dict[str, Any],
    headed: PreTrainedModel,
    body: PreTrainedModel,
    rank_limit: int,
) -> AdapterWeights:
    """The updates by their layers' paths in the resident body; PEFT's paths begin at the headed model."""
    prefix = headed.base_model_prefix + "."
    of_head = [key for key in of_layers if not key.startswith(KEY_PREFIX + prefix)]
    if of_head:
        method = "IA3" if config["peft_type"] == "IA3" else "LoRA"
        raise refusal(
            adapter_id,
            f"it has {method} weights of its head ({of_head[0]}); train the head whole, in modules_to_save",
        )
    layers = {prefix + path: layer for path, layer in linear_layers(body).items()}
    updates = linear_updates(adapter_id, of_layers, config, layers, rank_limit=rank_limit)
    return AdapterWeights(adapter_id, {path.removeprefix(prefix): update for path, update in updates.items()})
