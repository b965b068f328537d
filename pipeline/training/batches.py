"""A batch as the loss needs it: volumes in [0, 1], labels and groups."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from ..common.volumes import unit_range


class PrepareGroupBatch(PrepareBatch):
    """``(image, {"label", "group"})`` on the engine's device: the loss and the metric take the pair as the target.

    Volumes of 8 bits are moved as such, and become :func:`unit_range` there, with their ``brightness`` if there is one.
    """

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        def move(value: Any) -> Tensor:
            return torch.as_tensor(value).to(device=device, non_blocking=non_blocking, **kwargs)

        brightness = move(batchdata["brightness"]) if "brightness" in batchdata else None
        image = unit_range(move(batchdata["image"]), brightness)
        return image, {name: move(batchdata[name]) for name in ("label", "group")}
