"""Inputs and weights made by a formula, with which other programs computed the outputs in tests/data/networks.

And a network that is small enough to be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlung.pipeline.networks.ct_resnet import CTResNet152, InflatedResNet


def film(frames: int, height: int, width: int) -> Tensor:
    """A film [1, 3, T, H, W] in [-1, 1]: waves of another length and speed in each colour."""
    colour, t, y, x = np.indices((3, frames, height, width))
    waves = np.sin(0.05 * (1 + colour) * y + 0.3 * t) * np.cos(0.03 * x - 0.2 * t * colour)
    return torch.from_numpy(waves[None].astype(np.float32))


def volume(x: int, y: int, z: int) -> Tensor:
    """A volume [1, 1, X, Y, Z] in [0, 1] that is like none of its mirror images."""
    i, j, k = np.indices((x, y, z))
    waves = 0.5 + 0.5 * np.sin(0.11 * i) * np.cos(0.07 * j + 0.2 * k)
    return torch.from_numpy(waves[None, None].astype(np.float32))


def made_up_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for all weights, drawn in the order of their names; kernels keep the size of a signal."""
    random = np.random.RandomState(7)  # its stream is the same in every version of NumPy
    made = {}
    for name in sorted(state):
        shape = tuple(state[name].shape)
        if not state[name].is_floating_point():
            continue
        if len(shape) > 1:
            values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = random.uniform(0.5, 1.5, shape)
        else:
            values = random.uniform(-0.5, 0.5, shape)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


class ShallowCTResNet(CTResNet152):
    """CTResNet152 with a block a stage: 100 million parameters less."""

    def __init__(self, num_classes: int, **settings: Any) -> None:
        with torch.device("meta"):
            super().__init__(num_classes, **settings)
        self.backbone = InflatedResNet(1, (1, 1, 1, 1))
        self.to_empty(device="cpu")
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
