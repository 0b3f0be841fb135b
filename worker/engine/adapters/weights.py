"""An adapter's weights on the host, read from the folder that PEFT writes, ready to be copied into a slot."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from tandem.specs import MAX_LORA_RANK
from tandem.specs.peft_config import LINEAR_METHODS, PREFIX_METHODS, WEIGHTS_FILE
from worker.engine.adapters.linear_update import LinearUpdate, linear_layers
from worker.engine.adapters.peft_folder import read_config, read_tensors, refusal
from worker.engine.adapters.peft_prefix import read_prefix
from worker.engine.adapters.peft_updates import linear_updates
from worker.engine.adapters.prefix import PrefixKV, VirtualTokens


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """A published, immutable adapter. Two with the same id hold the same weights."""

    id: str
    modules: dict[str, LinearUpdate]
    """By the path of the linear layer in the model, such as `model.layers.0.self_attn.q_proj`."""
    prefix: PrefixKV | VirtualTokens | None = None
    """What it puts before the prompt."""

    @property
    def rank(self) -> int:
        """The largest rank of its updates; 0 without any."""
        return max((update.rank for update in self.modules.values()), default=0)


def read_adapter(
    adapter_id: str, folder: Path, model: PreTrainedModel, *, rank_limit: int = MAX_LORA_RANK
) -> AdapterWeights:
    """Read and check a PEFT folder for `model`; call it outside the engine's thread.

    All that costs (conversion, scaling, DoRA's norms, checks) happens here, so that the engine's thread has only to
    copy. Raises InvalidRequest for files that cannot be served and for a rank above `rank_limit`, AdapterMismatch
    for weights of another base model; both name what is at fault.
    """
    config = read_config(adapter_id, folder, methods=LINEAR_METHODS | PREFIX_METHODS)
    tensors = read_tensors(adapter_id, folder)
    if config["peft_type"] in PREFIX_METHODS:
        return AdapterWeights(adapter_id, {}, read_prefix(adapter_id, tensors, config, model))
    updates = linear_updates(adapter_id, tensors, config, linear_layers(model), rank_limit=rank_limit)
    if not updates:
        raise refusal(adapter_id, f"{WEIGHTS_FILE} holds no {config['peft_type']} weights")
    return AdapterWeights(adapter_id, updates)
