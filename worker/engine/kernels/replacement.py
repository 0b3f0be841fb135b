"""Parts of decoder models that run in kernels instead: those whose code is the very code that a kernel computes.

transformers copies the same few lines into most of its models. A module is taken for one of them by its class's
compiled code, not by its name: one that scales, clips or windows in its own way has other code, and stays as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from worker.engine.kernels.choice import Kernels
from worker.engine.kv.attention import slot_attention

SILU = type(ACT2FN["silu"])

ROTATION = "apply_rotary_pos_emb"
"""What an attention's module calls its rotation of queries and keys."""


@dataclass(frozen=True)
class _Kind:
    """An attention whose code is known."""

    reference: type[nn.Module]
    window: Callable[[Any], int | None]
    """Of a module of this kind: how many tokens its tokens see."""


ATTENTIONS = (
    _Kind(LlamaAttention, lambda _: None),
    _Kind(MistralAttention, lambda module: getattr(module.config, "sliding_window", None)),
    _Kind(Qwen2Attention, lambda module: module.sliding_window),
    _Kind(Qwen3Attention, lambda module: module.sliding_window),
)


class Replaced:
    """The modules of one model that run in kernels."""

    def __init__(self, model: nn.Module, kernels: Kernels) -> None:
        """Gives the modules that are known another `forward`; parameters and names stay."""
        self.modules: list[nn.Module] = []
        for module in model.modules():
            forward = _norm(module, kernels) or _gated(module, kernels) or _attention(module, kernels)
            if forward is not None:
                module.__dict__["forward"] = forward
                self.modules.append(module)

    def undo(self) -> None:
        """Give the modules their own `forward` back."""
        for module in self.modules:
            del module.__dict__["forward"]
        self.modules.clear()


def same_code(function: object, reference: object) -> bool:
    """Whether two functions are compiled from the same code, and the functions of rotation that they name as well."""
    if not isinstance(function, FunctionType) or not isinstance(reference, FunctionType):
        return False
    own, known = function.__code__, reference.__code__
    if (own.co_code, own.co_names, _constants(own)) != (known.co_code, known.co_names, _constants(known)):
        return False
    if ROTATION not in own.co_names:
        return True
    return same_code(function.__globals__.get(ROTATION), reference.__globals__.get(ROTATION))


def _constants(code: Any) -> tuple[Any, ...]:
    """Without texts: the first may be a docstring."""
    return tuple(each for each in code.co_consts if not isinstance(each, str))


Forward = Callable[..., Any]


def _norm(module: Any, kernels: Kernels) -> Forward | None:
    own = type(module).forward
    if same_code(own, LlamaRMSNorm.forward):
        epsilon, one_more = module.variance_epsilon, False
    elif same_code(own, GemmaRMSNorm.forward) and same_code(type(module)._norm, GemmaRMSNorm._norm):
        epsilon, one_more = module.eps, True
    else:
        return None
    plain, weight, rms_norm = module.forward, module.weight, kernels.rms_norm

    def forward(hidden_states: torch.Tensor) -> Any:
        if hidden_states.dtype != weight.dtype or hidden_states.requires_grad:
            return plain(hidden_states)
        return rms_norm(hidden_states, weight, epsilon, one_more=one_more)

    return forward


def _gated(module: Any, kernels: Kernels) -> Forward | None:
    if not same_code(type(module).forward, LlamaMLP.forward) or type(module.act_fn) not in (SILU, nn.SiLU):
        return None
    plain, gate_proj, up_proj, down_proj = module.forward, module.gate_proj, module.up_proj, module.down_proj
    dtype, silu_times = gate_proj.weight.dtype, kernels.silu_times

    def forward(x: torch.Tensor) -> Any:
        if x.dtype != dtype or x.requires_grad:
            return plain(x)
        return down_proj(silu_times(gate_proj(x), up_proj(x)))

    return forward


def _attention(module: Any, kernels: Kernels) -> Forward | None:
    kind = next((kind for kind in ATTENTIONS if same_code(type(module).forward, kind.reference.forward)), None)
    if kind is None:
        return None
    plain, window, rotate = module.forward, kind.window(module), kernels.rotate
    q_proj, k_proj, v_proj, o_proj = module.q_proj, module.k_proj, module.v_proj, module.o_proj
    q_norm, k_norm = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
    head_dim, dtype = module.head_dim, q_proj.weight.dtype

    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: object | None = None,
        **options: Any,
    ) -> Any:
        is_ours = position_embeddings is not None and past_key_values is None and hidden_states.dtype == dtype
        if not is_ours or hidden_states.shape[0] != 1 or hidden_states.requires_grad:
            return plain(hidden_states, position_embeddings, attention_mask, past_key_values, **options)
        assert position_embeddings is not None
        rows = hidden_states.shape[1]
        query, key, value = q_proj(hidden_states), k_proj(hidden_states), v_proj(hidden_states)
        if q_norm is not None and k_norm is not None:
            query = q_norm(query.view(rows, -1, head_dim)).view(1, rows, -1)
            key = k_norm(key.view(rows, -1, head_dim)).view(1, rows, -1)
        cosine, sine = position_embeddings
        rotate(query[0], key[0], cosine[0], sine[0])
        query, key, value = (each.view(1, rows, -1, head_dim).transpose(1, 2) for each in (query, key, value))
        attended, _ = slot_attention(
            module, query, key, value, attention_mask, scaling=module.scaling, sliding_window=window, **options
        )
        return o_proj(attended.view(1, rows, -1)), None

    return forward
