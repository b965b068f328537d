"""Several networks that answer together as one."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting


class Ensemble(nn.Module):
    """M networks as one module: logits [N, M, C] of volumes [N, 1, D, H, W]; with M = 1 plain logits [N, C].

    The logits are not combined here: a mean of logits is another answer than the mean of probabilities.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network, got none")
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        logits = [network(image) for network in self.networks]
        return logits[0] if len(logits) == 1 else torch.stack(logits, dim=1)


def members_of(network: nn.Module) -> list[nn.Module]:
    """The networks of an ensemble; a single one, perhaps wrapped for several processes, is its own."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    return list(network.networks) if isinstance(network, Ensemble) else [network]


def ensemble_of(network: nn.Module, members: int) -> nn.Module:
    """The network for one checkpoint, else an :class:`Ensemble` of it and copies that :func:`load_members` fills."""
    check_setting("members", members, members >= 1, "at least 1")
    if members == 1:
        return network
    return Ensemble([network, *(copy.deepcopy(network) for _ in range(members - 1))])
