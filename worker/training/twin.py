"""The twin: a second module tree over a resident model's weights, in which training happens."""

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from worker.four_bit import share_four_bits


class GivesWay(Protocol):
    """What the twin's layers call at their boundaries: `Turns`, or `SeededTurns` around it."""

    def give_way(self) -> None: ...


def build_twin(resident: PreTrainedModel) -> PreTrainedModel:
    """A model of the resident's class whose parameters lie in the resident's memory.

    The twin has modules, config, Parameter objects and buffers of its own: PEFT's injected layers, `train()`,
    gradients, `requires_grad`, hooks and the attention implementation of the one never reach the other. It starts
    in eval mode, without a KV cache, with the attention that transformers chooses for the class (sdpa where the
    class has it), whatever the resident serves with.

    Only the values of parameters are shared, and training must not write to them; buffers are copied, since a
    forward pass in train mode may write to those (a batch norm's running means).

    Raises ValueError when the resident lacks a parameter or buffer that its class has.
    """
    config = copy.deepcopy(resident.config)
    config._attn_implementation = None
    config.use_cache = False
    # The device context holds for this thread only. `accelerate.init_empty_weights` replaces
    # `nn.Module.register_parameter` for the whole process: a model that another thread loads meanwhile would lose
    # its weights.
    with torch.device("meta"):
        twin: PreTrainedModel = type(resident)(config)
    share_parameters(resident, twin)
    copy_buffers(resident, twin)
    twin.tie_weights()
    twin.eval()
    return twin


def share_parameters(resident: nn.Module, twin: nn.Module) -> None:
    """Put the resident's memory under each parameter of `twin`. Raises ValueError when the resident lacks one."""
    share_four_bits(resident, twin)
    theirs = dict(resident.named_parameters(remove_duplicate=False))
    names = [name for name, parameter in twin.named_parameters(remove_duplicate=False) if parameter.is_meta]
    if missing := [name for name in names if name not in theirs]:
        raise ValueError(f"the resident has no parameter {missing[0]} ({len(missing)} are missing in all)")
    # `assign` wraps each value in a new Parameter over the same memory. Not strict: persistent buffers come after.
    twin.load_state_dict({name: theirs[name].detach() for name in names}, strict=False, assign=True)


def copy_buffers(resident: nn.Module, twin: nn.Module) -> None:
    """Copy every buffer, also those that no state_dict holds, such as rotary frequencies.

    Raises ValueError when the resident lacks one.
    """
    theirs = dict(resident.named_buffers(remove_duplicate=False))
    for name, _ in list(twin.named_buffers(remove_duplicate=False)):
        if name not in theirs:
            raise ValueError(f"the resident has no buffer {name}")
        path, _, leaf = name.rpartition(".")
        twin.get_submodule(path)._buffers[leaf] = theirs[name].detach().clone()


def layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks, in order: what its outermost `ModuleList`s hold.

    Transformers' models keep their decoder (or encoder) layers in such a list under various names (`layers`, `h`,
    `block`); lists inside a layer, such as experts, are parts of it. Raises ValueError when there is none.
    """
    found: list[nn.Module] = []

    def collect(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(child)
            else:
                collect(child)

    collect(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of layers, so training on it could not give way")
    return found


def give_way_at_layers(twin: nn.Module, turns: GivesWay) -> list[RemovableHandle]:
    """Call `turns.give_way()` before the forward and before the backward pass of every layer of the twin, and of
    every frozen matrix in it.

    A layer's backward pass of a 512-token micro-batch takes about as long as a whole step of serving, so a layer is
    not fine enough to keep a latency target with. A boundary costs about a microsecond where nobody waits.

    Returns the hooks' handles. Call it when the adapter is attached: afterwards the twin runs only while training
    holds a turn.
    """

    def give_way(*_: object) -> None:
        turns.give_way()

    def watch_gradient(_module: nn.Module, _inputs: object, output: object) -> None:
        # A backward pass begins when the gradient of the output is there. A module's backward hook would say the
        # same, but warns about the first layer, whose input needs no gradient.
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(give_way)

    handles = []
    for layer in layers(twin):
        for module in (layer, *_frozen_matrices(layer)):
            handles.append(module.register_forward_pre_hook(give_way))
            handles.append(module.register_forward_hook(watch_gradient))
    return handles


class GiveWayAtEveryCall(TorchFunctionMode):
    """While it is entered, `turns.give_way()` comes before every call of a torch function in this thread.

    For work without layers: an adapter that is put onto the twin, an optimizer's step over thousands of tensors.
    """

    def __init__(self, turns: GivesWay) -> None:
        super().__init__()
        self._turns = turns

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self._turns.give_way()
        return func(*args, **(kwargs or {}))


def _frozen_matrices(layer: nn.Module) -> list[nn.Module]:
    """The modules in a layer that hold a matrix of the base: its linear layers, under whatever class. What an adapter
    adds is small beside them."""
    return [
        module
        for module in layer.modules()
        if module is not layer
        and any(one.dim() >= 2 and not one.requires_grad for one in module.parameters(recurse=False))
    ]
