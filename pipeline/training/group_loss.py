"""Batches with groups, and the training's loss and the weight of each group as metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.engines import PrepareBatch
from torch import Tensor

from ..common.names import LEFT_OUT
from ..common.volumes import unit_range
from ..losses.two_level import TwoLevelLoss
from .bad_steps import SKIPPED


class PrepareGroupBatch(PrepareBatch):
    """``(image, {"label", "group"})`` on the engine's device: the loss and the metric take the pair as the target.

    A ``source`` of the scans, which :class:`~.losses.SiteHeadLoss` needs, comes along where the batch has one.

    Volumes of 8 bits are moved as such, and become :func:`unit_range` there, with their ``brightness`` if there is one.
    """

    def __call__(
        self, batchdata: dict[str, Any], device: str | torch.device | None = None, non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        def move(value: Any) -> Tensor:
            return torch.as_tensor(value).to(device=device, non_blocking=non_blocking, **kwargs)

        brightness = move(batchdata["brightness"]) if "brightness" in batchdata else None
        image = unit_range(move(batchdata["image"]), brightness)
        named = ("label", "group", *(["source"] if "source" in batchdata else []))
        return image, {name: move(batchdata[name]) for name in named}


class GroupLoss(Metric):
    """Mean loss and mean CVaR weight of each group over a training epoch.

    ``train_loss`` is the mean of the batches' losses, ``train_loss_<group>`` the mean loss of the group's scans, and
    ``train_cvar_weight_<group>`` the share of the objective that the group had, averaged over batches. The shares of
    all groups (and of ``left_out``, the scans of no group) sum to 1 with the exact gradient, on average with a running
    estimate. ``class_shares`` [C] is the share of the objective that each class had in the last epoch that was
    computed, None before: the class frequencies that the network was trained under.

    ValueError where the aggregation is made for another number of groups than ``group_names`` has.

    Args:
        loss: the objective in training; its parts are evaluated again, on the outputs of the step, without gradient.
        output_transform: engine output -> ``(logits [N, C], {"label": [N], "group": [N]}, loss)``.
    """

    def __init__(
        self, loss: TwoLevelLoss, group_names: Sequence[str],
        output_transform: Callable[[Any], Any] = lambda output: (output["pred"], output["label"], output["loss"]),
        device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        if LEFT_OUT in group_names:
            raise ValueError(f"group_names: {LEFT_OUT!r} is reserved for the scans of no group")
        known = loss.aggregation.num_groups
        if known not in (None, len(group_names)):
            there = f"there are {len(group_names)}: {', '.join(group_names)}"
            raise ValueError(f"the aggregation is made for {known} groups, and {there}")
        self.loss, self.group_names = loss, tuple(group_names)
        self.class_shares: Tensor | None = None
        super().__init__(output_transform, device=device, skip_unrolling=True, metrics_result_mode="flatten")

    @reinit__is_reduced
    def reset(self) -> None:
        # rows: loss sum, scans, weight sum; columns: the groups and unknown. They stay on the batches' device: moving
        # them at every step would make the step wait.
        self.sums = torch.zeros(3, len(self.group_names) + 1, dtype=torch.float64, device=self._device)
        self.batches = torch.zeros(2, dtype=torch.float64, device=self._device)
        self.classes = torch.zeros(1, dtype=torch.float64, device=self._device)  # sums of the weights [C] once known

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor], Tensor]) -> None:
        logits, target, loss = output
        losses, weights = self.loss.explain(logits.detach(), target)
        group = torch.where(target["group"] < 0, len(self.group_names), target["group"])
        rows = torch.stack([losses.double(), torch.ones_like(losses).double(), weights.double()])
        sums = torch.zeros(3, len(self.group_names) + 1, dtype=torch.float64, device=rows.device)
        sums.index_add_(1, group.long(), rows)
        width = self.loss.num_classes or logits.shape[1]
        classes = torch.zeros(width, dtype=torch.float64, device=rows.device)
        classes.index_add_(0, target["label"].long(), rows[2])
        batch = torch.stack([torch.as_tensor(loss).detach().double().to(rows.device), rows.new_ones(())])
        self.sums, self.batches = self.sums.to(sums) + sums, self.batches.to(batch) + batch
        self.classes = self.classes.to(classes) + classes

    def state_dict(self) -> dict[str, Tensor]:
        """This process's part of the epoch so far."""
        return {"sums": self.sums.cpu(), "batches": self.batches.cpu(), "classes": self.classes.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums, self.batches = state["sums"].to(self.sums), state["batches"].to(self.batches)
        self.classes = state["classes"].to(self.classes)

    def iteration_completed(self, engine: Engine) -> None:
        if not engine.state.output.get(SKIPPED):
            super().iteration_completed(engine)

    @sync_all_reduce("sums", "batches", "classes")
    def compute(self) -> dict[str, float]:
        classes = self.classes.cpu()
        self.class_shares = classes / classes.sum() if classes.sum() > 0 else None
        loss, scans, weight = self.sums.cpu()
        batches = self.batches.cpu()
        result = {"train_loss": (batches[0] / batches[1]).item()}  # NaN when every step was left out
        for g, name in enumerate((*self.group_names, LEFT_OUT)):
            if scans[g] > 0:
                result[f"train_loss_{name}"] = (loss[g] / scans[g]).item()
                result[f"train_cvar_weight_{name}"] = (weight[g] / batches[1]).item()
        return result
