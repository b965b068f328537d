"""Which layers of a network a training changes: all of them, or the head alone (a linear probe).

``frozen`` is the head alone too, on features that the rest made of each scan once (:mod:`~.frozen`).
"""

import logging

from torch import nn

from fairlung.transforms.checks import check_setting

from ..common.distributed import is_primary

logger = logging.getLogger(__name__)

TRAIN_LAYERS = ("all", "head", "frozen")


def head_layers(network: nn.Module) -> tuple[str, ...]:
    """The modules of the head: those that the network names, or else its last layer if that is a Linear.

    ValueError for a network that names none and ends in another layer; the order is that in which layers were made.
    """
    if names := getattr(network, "head_layers", ()):
        return tuple(names)
    with_weights = [name for name, module in network.named_modules() if list(module.parameters(recurse=False))]
    if not with_weights or not isinstance(last := network.get_submodule(with_weights[-1]), nn.Linear):
        kind = type(last).__name__ if with_weights else "no layer"
        raise ValueError(
            f"train_layers: head needs a network whose last layer is a Linear, or that names its head_layers; "
            f"{type(network).__name__} ends in {kind}"
        )
    return (with_weights[-1],)


def train_only(network: nn.Module, layers: str) -> nn.Module:
    """The network, of which ``all`` or the ``head`` trains. With ``all`` it stays as it is, with ``frozen`` too.

    The other layers get no gradient and stay in evaluation mode: their batch normalisation keeps its running
    statistics, and their dropout leaves nothing out.
    """
    check_setting("train_layers", layers, layers in TRAIN_LAYERS, f"one of {', '.join(TRAIN_LAYERS)}")
    on_features = getattr(network, "on_frozen_features", False)
    if on_features != (layers == "frozen"):
        raise ValueError(
            "train_layers: frozen and the overlay frozen.yaml go together, "
            f"got {layers} {'with' if on_features else 'without'} it"
        )
    if layers in ("all", "frozen"):
        return network
    head = head_layers(network)
    network.requires_grad_(False)
    for name in head:
        network.get_submodule(name).requires_grad_(True)

    def stand_still(module: nn.Module, arguments: object) -> None:
        training = module.training
        if training:  # what the engine has just set, of all layers
            module.eval()
            module.training = training
            for name in head:
                module.get_submodule(name).train()

    network.register_forward_pre_hook(stand_still)
    if getattr(network, "pretrained", None) is False and is_primary():
        logger.warning("train_layers: head with random weights: the features that the head reads are not trained")
    return network


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What an optimiser is to hold: the parameters that get a gradient."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
