"""What the stock MONAI engines need to train with groups: batch preparation, group losses, a record of the epochs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.engines import PrepareBatch, SupervisedTrainer
from torch import Tensor

from .distributed import is_primary
from .losses import TwoLevelLoss
from .names import LEFT_OUT

logger = logging.getLogger(__name__)


def unit_range(image: Tensor, brightness: Tensor | None = None) -> Tensor:
    """Volumes as a network takes them: grey levels divided by 255, times a factor a volume, cut off at 1.

    Args:
        image: [N, 1, D, H, W] or [1, D, H, W], uint8; or float in [0, 1] already.
        brightness: N factors in any shape; None = 1.

    Returns:
        [N, 1, D, H, W] in [0, 1], float32 or the float type of ``image``.
    """
    if not image.is_floating_point():
        image = image.float().div_(255)
    if brightness is None:
        return image
    return (image * brightness.reshape(-1, *[1] * (image.ndim - 1)).to(image)).clamp_(max=1)


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


class GroupLoss(Metric):
    """Mean loss and mean CVaR weight of each group over a training epoch.

    ``train_loss`` is the mean of the batches' losses, ``train_loss_<group>`` the mean loss of the group's scans, and
    ``train_cvar_weight_<group>`` the share of the objective that the group had, averaged over batches; the shares of
    all groups (and of ``left_out``, the scans of no group) sum to 1 with the exact gradient; with a running estimate on
    average.

    Args:
        loss: the objective in training; its parts are evaluated again, on the outputs of the step, without gradient.
        group_names: G names.
        output_transform: engine output -> ``(logits [N, C], {"label": [N], "group": [N]}, loss)``.
    """

    def __init__(
        self,
        loss: TwoLevelLoss,
        group_names: Sequence[str],
        output_transform: Callable[[Any], Any] = lambda output: (output["pred"], output["label"], output["loss"]),
        device: str | torch.device = "cpu",
    ) -> None:
        if LEFT_OUT in group_names:
            raise ValueError(f"group_names: {LEFT_OUT!r} is reserved for the scans of no group")
        self.loss = loss
        self.group_names = tuple(group_names)
        super().__init__(
            output_transform=output_transform, device=device, skip_unrolling=True, metrics_result_mode="flatten"
        )

    @reinit__is_reduced
    def reset(self) -> None:
        # a row each: loss sum, scans, weight sum; a column a group and one for unknown. Kept on the device of the
        # first batch: moving them at every step would make the step wait.
        self.sums: Tensor | None = None
        self.batches: Tensor | None = None

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Mapping[str, Tensor], Tensor]) -> None:
        logits, target, loss = output
        losses, weights = self.loss.explain(logits.detach(), target)
        group = torch.where(target["group"] < 0, len(self.group_names), target["group"])
        rows = torch.stack([losses.double(), torch.ones_like(losses).double(), weights.double()])
        sums = torch.zeros(3, len(self.group_names) + 1, dtype=torch.float64, device=rows.device)
        sums.index_add_(1, group.long(), rows)
        batch = torch.stack([torch.as_tensor(loss).detach().double().to(rows.device), rows.new_ones(())])
        self.sums = sums if self.sums is None else self.sums + sums
        self.batches = batch if self.batches is None else self.batches + batch

    @sync_all_reduce("sums", "batches")
    def compute(self) -> dict[str, float]:
        if self.sums is None or self.batches is None:
            return {}
        loss, scans, weight = self.sums.cpu()
        batches = self.batches.cpu()
        result = {"train_loss": (batches[0] / batches[1]).item()}
        for g, name in enumerate((*self.group_names, LEFT_OUT)):
            if scans[g] > 0:
                result[f"train_loss_{name}"] = (loss[g] / scans[g]).item()
                result[f"train_cvar_weight_{name}"] = (weight[g] / batches[1]).item()
        return result


class EpochLog:
    """One line an epoch: training loss on the trainer, P, F1 of each group and gap on the evaluator.

    Args:
        names: metrics to show, in order; those that an engine does not have are left out.
        label: what the line is about, e.g. ``train``.
    """

    def __init__(self, names: Sequence[str], label: str) -> None:
        self.names = tuple(names)
        self.label = label

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not is_primary():
            return
        shown = [f"{name} {engine.state.metrics[name]:.4f}" for name in self.names if name in engine.state.metrics]
        logger.info("epoch %d  %s  %s", engine.state.epoch, self.label, "  ".join(shown))


class MetricHistory:
    """Every number of every epoch in a CSV of columns ``epoch``, ``metric``, ``value``, for learning curves.

    A handler of the trainer. Of the trainer it takes the metrics and ``lr``, the rate that the epoch was trained with;
    of the evaluator the metrics and ``best_<key metric>``, the best value so far.

    A training starts the file afresh. One that is resumed at epoch k keeps the rows of earlier epochs. The file is
    replaced as a whole each epoch and is never half written; one that cannot be written is a warning, given once.

    Args:
        path: the CSV; its folder is made.
        evaluator: the engine that validates the training, if there is one.
    """

    COLUMNS = ("epoch", "metric", "value")

    def __init__(self, path: str | Path, evaluator: Engine | None = None) -> None:
        self.path = Path(path)
        self.evaluator = evaluator
        self._rows: list[tuple[int, str, float]] = []
        self._started = False
        self._rate: float | None = None
        self._warned = False

    def attach(self, engine: SupervisedTrainer) -> None:
        engine.add_event_handler(Events.STARTED, self._expect_start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._add_training)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._add_evaluation)

    def _expect_start(self, engine: Engine) -> None:
        self._started = False  # which epoch it starts with is known when all handlers of STARTED have run

    def _start_epoch(self, engine: SupervisedTrainer) -> None:
        # the rate is read before the scheduler, which runs at the end of the epoch, moves it
        self._rate = float(engine.optimizer.param_groups[0]["lr"])
        if not self._started:
            self._started = True
            self._rows = self._earlier_rows(engine.state.epoch)
            self._write()

    def _add_training(self, engine: Engine) -> None:
        assert self._rate is not None
        self._add(engine.state.epoch, {**engine.state.metrics, "lr": self._rate})

    def _add_evaluation(self, engine: Engine) -> None:
        best = {f"best_{engine.state.key_metric_name}": engine.state.best_metric}
        self._add(engine.state.epoch, {**engine.state.metrics, **best})

    def _add(self, epoch: int, values: Mapping[str, Any]) -> None:
        self._rows += [(epoch, name, float(value)) for name, value in values.items()]
        self._write()

    def _earlier_rows(self, epoch: int) -> list[tuple[int, str, float]]:
        if epoch == 1 or not is_primary() or not self.path.exists():
            return []
        try:
            table = pd.read_csv(self.path, dtype={"epoch": int, "metric": str, "value": str})[list(self.COLUMNS)]
            table["value"] = table["value"].astype(float)  # exact, which not every version's parser is
        except (OSError, ValueError, KeyError) as error:
            self._warn("%s is no history and is not continued: %s", self.path, error)
            return []
        return list(table[table["epoch"] < epoch].itertuples(index=False, name=None))

    def _write(self) -> None:
        if not is_primary():
            return
        part = self.path.with_name(self.path.name + ".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(self._rows, columns=list(self.COLUMNS)).to_csv(part, index=False, na_rep="nan")
            part.replace(self.path)
        except OSError as error:
            self._warn("%s cannot be written, the training goes on: %s", self.path, error)

    def _warn(self, message: str, *values: Any) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *values)
