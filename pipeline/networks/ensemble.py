"""Several networks that answer together as one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """M networks as one module: logits [N, M, C] of volumes [N, 1, D, H, W]; with M = 1 plain logits [N, C].

    The logits are not combined here: a mean of logits is another answer than the mean of probabilities.

    Args:
        networks: M classifiers with logits [N, C].
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network, got none")
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        logits = [network(image) for network in self.networks]
        return logits[0] if len(logits) == 1 else torch.stack(logits, dim=1)


def ensemble_of(network: nn.Module, members: int) -> nn.Module:
    """A network with place for ``members`` checkpoints: the network itself for one, else an :class:`Ensemble` of it.

    The network is the first member, and the others are copies, for :func:`load_members` to fill.

    Raises:
        ValueError: ``members`` is below 1.
    """
    if members < 1:
        raise ValueError(f"members must be at least 1, got {members}")
    if members == 1:
        return network
    return Ensemble([network, *(copy.deepcopy(network) for _ in range(members - 1))])
