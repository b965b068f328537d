"""The layer that gives the class logits, and what it is given: what a second head in training reads."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def class_layer(network: nn.Module, num_classes: int, what: str) -> nn.Linear:
    """The network's last linear layer; ValueError, for ``what`` is built on it, unless it gives ``num_classes``."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != num_classes:
        found = f"its last one gives {linear[-1].out_features}" if linear else "it has none"
        name = type(network).__name__
        raise ValueError(f"{what} needs {name} to end in a linear layer of {num_classes} classes; {found}")
    return linear[-1]


def logits_and_features(
    network: nn.Module, layer: nn.Linear, image: Tensor, seen: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """[N, C] answers of a network, and [N, F] what its ``layer`` got, of which ``seen`` is what it is to see."""
    met: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        met.append(inputs[0])
        return None if seen is None else seen(inputs[0])

    hook = layer.register_forward_pre_hook(look)
    try:
        logits = network(image)
    finally:
        hook.remove()
    return logits, met[-1]


def head_beside(layer: nn.Linear, features: int, outputs: int) -> nn.Linear:
    """A linear layer whose first weights nobody else's draws depend on, where and as ``layer`` is."""
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(features, outputs).to(layer.weight)
