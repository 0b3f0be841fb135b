"""What training changes on the device, as named tensors and back: adapter weights and optimizer state."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from worker.training.adalora import allocation_tensors, restore_allocation
from worker.training.checkpoint import CheckpointUnusable

ADAPTER = "adapter/"
OPTIMIZER = "optimizer/"
RANDOM = "random/"
BEST = "best/"


def trained_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The trained parameters, their optimizer state and AdaLoRA's allocation, on the CPU and bit for bit.

    States are named by their parameter, not by its number in the optimizer, so that they cannot meet another one
    when a library orders parameters differently. On the CPU the tensors are the trained ones themselves: use them
    before the next step. Raises TypeError for an optimizer whose state is not made of tensors.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _trained(model).items():
        tensors[f"{ADAPTER}{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the optimizer keeps {key} as {type(value).__name__}: only tensors are saved")
            tensors[f"{OPTIMIZER}{name}/{key}"] = value.detach().cpu().contiguous()
    return tensors | allocation_tensors(model)


def check_fits(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointUnusable unless `tensors` hold each trained parameter of `model` in its shape and type."""
    trained = _trained(model)
    found = {name.removeprefix(ADAPTER) for name in tensors if name.startswith(ADAPTER)}
    if found != trained.keys():
        raise CheckpointUnusable(f"it has other parameters: {', '.join(sorted(found ^ trained.keys())[:3])}")
    for name, parameter in trained.items():
        tensor = tensors[f"{ADAPTER}{name}"]
        if (tensor.shape, tensor.dtype) != (parameter.shape, parameter.dtype):
            raise CheckpointUnusable(
                f"{name} is {tensor.dtype} {list(tensor.shape)} in it, {parameter.dtype} {list(parameter.shape)} here"
            )


def restore_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(tensors[f"{ADAPTER}{name}"])
    restore_allocation(model, tensors)


def restore_optimizer(
    optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], learning_rates: Sequence[float]
) -> None:
    """Put the saved states and the groups' learning rates into an optimizer that has not stepped yet.

    Of a group's settings only the learning rate changes while it trains; the others come from the hyperparameters.
    """
    names = {parameter: name for name, parameter in _trained(model).items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    content = optimizer.state_dict()
    content["state"] = {
        number: states
        for number, parameter in enumerate(parameters)
        if (states := _with_prefix(tensors, f"{OPTIMIZER}{names[parameter]}/"))
    }
    for group, learning_rate in zip(content["param_groups"], learning_rates, strict=True):
        group["lr"] = learning_rate
    optimizer.load_state_dict(content)


def adapter_snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trained parameters as they are, which `restore_adapter` puts back."""
    tensors = {f"{ADAPTER}{name}": parameter for name, parameter in _trained(model).items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in (tensors | allocation_tensors(model)).items()}


def best_tensors(snapshot: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{BEST}{name}": tensor for name, tensor in snapshot.items()}


def best_snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The snapshot among a checkpoint's tensors; empty if there is none."""
    return _with_prefix(tensors, BEST)


def random_tensors(states: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{RANDOM}{number}": state for number, state in enumerate(states)}


def random_states(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    states = _with_prefix(tensors, RANDOM)
    return [states[str(number)] for number in range(len(states))]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
