"""Adapters that no batch of several holds: each in a module tree of its own over the resident's weights.

The engine mixes adapters that are sums of low rank, factors, or virtual tokens. What is not (OFT's rotations), or is
of a higher rank than its slots, PEFT runs as it trained it: in a twin, which costs the memory of the adapter alone,
by the library's `generate()`, one adapter's rows at a time. So it runs every adapter of an encoder-decoder, of which
there is no engine.
"""

import copy
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftMixedModel, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tandem.errors import AdapterMismatch
from tandem.specs import Task
from tandem.specs.peft_config import APART_METHODS, CONFIG_FILE, KEY_PREFIX, LINEAR_METHODS, PREFIX_METHODS
from worker.encoders import EncoderBatcher
from worker.engine.adapters.peft_folder import read_config, read_tensors, refusal
from worker.engine.adapters.peft_updates import RankAboveLimit, layers_of
from worker.engine.adapters.weights import AdapterWeights, read_adapter
from worker.training.twin import build_twin

SHAPED_BY: dict[str, frozenset[str]] = {"LOKR": frozenset({"decompose_both", "decompose_factor"})}
"""Method → the fields of its config by which PEFT chooses the sizes of its matrices. The engine reads these off the
weights, so they are not among LINEAR_METHODS'."""
TREES_KEPT = 4
"""Module trees of one resident. A tree of a model of 30 layers takes some MB beside its adapter, and half a second to
build."""


_Key = tuple[str, Task]
"""An adapter's id, and the task that is done with it."""


@dataclass(frozen=True, eq=False)
class ApartAdapter:
    """A published, immutable adapter on the host, as PEFT takes it. Two with the same id hold the same weights."""

    id: str
    config: dict[str, Any]
    """Of adapter_config.json, the fields that act on what the weights compute; and PEFT's name for its task."""
    targets: tuple[str, ...]
    """The paths of the layers that it changes."""
    tensors: dict[str, Tensor]
    reason: str
    """Why the batch cannot hold it."""


def read_served(
    adapter_id: str, folder: Path, model: PreTrainedModel, *, rank_limit: int
) -> AdapterWeights | ApartAdapter:
    """Read and check a PEFT folder for `model`: for the batch if its slots, of rank `rank_limit`, can hold it.

    Raises InvalidRequest for files that cannot be served, AdapterMismatch for those of another base model.
    """
    config = read_config(adapter_id, folder, methods=LINEAR_METHODS | APART_METHODS | PREFIX_METHODS)
    if config["peft_type"] in APART_METHODS:
        return _read_apart(adapter_id, folder, config, "CAUSAL_LM", f"{config['peft_type']} is no sum of low rank")
    try:
        return read_adapter(adapter_id, folder, model, rank_limit=rank_limit)
    except RankAboveLimit as error:
        return _read_apart(adapter_id, folder, config, "CAUSAL_LM", error.message)


def read_text_to_text(
    adapter_id: str,
    folder: Path,
    model: PreTrainedModel,  # noqa: ARG001 - whether it fits is found when its tree is built
) -> ApartAdapter:
    """Read and check a PEFT folder for an encoder-decoder. Raises InvalidRequest for files that cannot be served."""
    config = read_config(adapter_id, folder, methods=LINEAR_METHODS | APART_METHODS)
    return _read_apart(adapter_id, folder, config, "SEQ_2_SEQ_LM", "an encoder-decoder is served by the library")


def _read_apart(adapter_id: str, folder: Path, config: dict[str, Any], task_type: str, reason: str) -> ApartAdapter:
    """Only what acts on the weights is taken from the config: a stranger's patterns of names choose no layer."""
    method = config["peft_type"]
    fields = (LINEAR_METHODS | APART_METHODS)[method] | SHAPED_BY.get(method, frozenset())
    acting = {name: config[name] for name in fields if name in config}
    tensors = read_tensors(adapter_id, folder)
    _check_ranks(adapter_id, config, max((max(one.shape, default=0) for one in tensors.values()), default=0))
    targets = layers_of(adapter_id, method, tensors)
    return ApartAdapter(adapter_id, {"peft_type": method, "task_type": task_type} | acting, targets, tensors, reason)


def _check_ranks(adapter_id: str, config: Mapping[str, Any], largest: int) -> None:
    """Refuse a rank above the `largest` dimension of the adapter's weights: PEFT takes memory for the rank before it
    looks at these. LoKr is left out: a rank above its layers' sizes says that their matrices are whole."""
    if config["peft_type"] == "LOKR":
        return
    ranks = {name: config[name] for name in ("r", "init_r") if name in config}
    if isinstance(pattern := config.get("rank_pattern"), dict):
        # AdaLoRA's pattern says of each rank whether it is kept.
        ranks |= {f"rank_pattern of {name}": rank for name, rank in pattern.items() if not isinstance(rank, list)}
    for name, rank in ranks.items():
        if not isinstance(rank, int) or rank > largest:
            raise refusal(adapter_id, f"{name} is {rank!r} in {CONFIG_FILE}, and no weight is larger than {largest}")


def build_apart(adapter: ApartAdapter, resident: PreTrainedModel) -> PreTrainedModel:
    """A twin of `resident` with the adapter in it, ready for `generate()`.

    Raises AdapterMismatch, and InvalidRequest for a config that PEFT does not take.
    """
    layers = dict(resident.named_modules())
    if unknown := [path for path in adapter.targets if not isinstance(layers.get(path), nn.Linear | Conv1D)]:
        raise AdapterMismatch(
            f"adapter {adapter.id!r} changes {unknown[0]}, which is no linear layer of the model", param="adapter"
        )
    twin = build_twin(resident)
    twin.config.use_cache = True
    twin.generation_config = copy.deepcopy(resident.generation_config)
    model = _with_layers(adapter, twin)
    try:
        loaded = cast("Any", set_peft_model_state_dict(model, dict(adapter.tensors)))
    except RuntimeError as error:
        raise AdapterMismatch(
            f"adapter {adapter.id!r} was trained on another base model: {error}", param="adapter"
        ) from error
    prefix = cast("Any", model.base_model).prefix
    if wrong := [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if prefix in key)]:
        raise AdapterMismatch(
            f"adapter {adapter.id!r} does not fit PEFT's {adapter.config['peft_type']}: {wrong[0]}", param="adapter"
        )
    twin.eval().requires_grad_(False)
    return twin


def _with_layers(adapter: ApartAdapter, twin: PreTrainedModel) -> PeftModel | PeftMixedModel:
    """The twin with PEFT's layers in it, which have no values of the adapter's yet."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 has renamed; both names hold the same until v6.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # PEFT turns Conv1D's weight itself, and says so.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module", UserWarning)
        # PEFT looks for AdaLoRA's ranks by LoRA's rule too, under which they match nothing.
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        try:
            config = PeftConfig.from_peft_type(
                **adapter.config, **_fixed(adapter), target_modules=list(adapter.targets)
            )
            made: PeftModel | PeftMixedModel = get_peft_model(twin, config)
        except (TypeError, ValueError) as error:
            raise refusal(adapter.id, f"PEFT cannot build it by its config: {error}") from error
    return made


def _fixed(adapter: ApartAdapter) -> dict[str, Any]:
    """What a config needs besides, and the adapter's own does not say or the weights say better."""
    method = adapter.config["peft_type"]
    if method == "ADALORA":
        # Its config wants the length of a training, also where there is none.
        return {"inference_mode": True, "total_step": 1}
    if method == "IA3":
        return {"inference_mode": True, "feedforward_modules": _scaled_inputs(adapter)}
    return {"inference_mode": True}


def _scaled_inputs(adapter: ApartAdapter) -> list[str]:
    """The layers whose inputs (IA)³ scales: PEFT's vector for these is [1, in_features], for others [out, 1]."""
    return [
        path
        for path in adapter.targets
        if (vector := adapter.tensors.get(f"{KEY_PREFIX}{path}.ia3_l")) is not None and vector.shape[0] == 1
    ]


class ApartAdapters:
    """The module trees of one resident, each with a batcher that runs its adapter's rows. Least recently used leave
    first, and none that is in use."""

    def __init__(self, start: Callable[[ApartAdapter, Task], EncoderBatcher]) -> None:
        """`start` builds an adapter's tree and gives a started batcher over it, which does a task."""
        self._start = start
        self._batchers: OrderedDict[_Key, EncoderBatcher] = OrderedDict()
        self._users: dict[_Key, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def use(self, adapter: ApartAdapter, task: Task) -> Iterator[EncoderBatcher]:
        """The adapter's batcher for `task`, which stays while the block runs. Raises AdapterMismatch."""
        key = (adapter.id, task)
        with self._lock:
            if key not in self._batchers:
                self._batchers[key] = self._start(adapter, task)
            self._batchers.move_to_end(key)
            self._users[key] = self._users.get(key, 0) + 1
            batcher, surplus = self._batchers[key], self._take_surplus()
        for unused in surplus:
            unused.stop()
        try:
            yield batcher
        finally:
            with self._lock:
                self._users[key] -= 1

    def is_busy(self) -> bool:
        # Waits for no lock: whoever holds it may hang.
        return any(batcher.is_busy() for batcher in list(self._batchers.values()))

    def progress(self) -> int:
        return sum(batcher.progress() for batcher in list(self._batchers.values()))

    def stop(self) -> None:
        with self._lock:
            for batcher in self._batchers.values():
                batcher.stop()

    def _take_surplus(self) -> list[EncoderBatcher]:
        unused = [key for key in self._batchers if not self._users.get(key)]
        surplus = unused[: max(len(self._batchers) - TREES_KEPT, 0)]
        for key in surplus:
            self._users.pop(key, None)
        return [self._batchers.pop(key) for key in surplus]
