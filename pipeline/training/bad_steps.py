"""A step whose loss, output or gradient is not finite changes nothing; a training that has only such steps ends."""

import logging
import math
from collections.abc import Mapping

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointSaver
from torch import Tensor, nn

from fairlung.transforms.checks import check_whole

from ..common.distributed import world_size
from ..common.errors import UserError

logger = logging.getLogger(__name__)

SKIPPED = "skipped"  # key of the trainer's output in a step that changed nothing
BAD_STEPS = "train_bad_steps"  # metric of an epoch that had any


class NotFiniteError(UserError, ArithmeticError):
    """A training came to losses, outputs or gradients that are not finite, and does not get on."""


class SkipBadSteps:
    """Handler of the trainer, first among them: a step that is not finite leaves everything as it was.

    That is the weights, the optimiser, the network's running statistics and what the loss remembers. The step is logged
    with its scans, counted (``train_bad_steps`` of the epoch) and left out of the training loss. All processes skip it
    when one has to. An overflow of mixed precision, whose gradient scaler mends it by a smaller scale, is no fault.

    One look at the device a step, after the backward pass, says whether all is finite.

    Args:
        loss: the objective, whose buffers are what it remembers.
        evaluator: whose best epoch the training is to have; NotFiniteError at the end if none had finite outputs.
        most: bad steps in a row, from 1, after which the training ends with NotFiniteError.
    """

    def __init__(self, loss: nn.Module, evaluator: Engine | None = None, most: int = 10) -> None:
        check_whole("max_bad_steps", most, least=1)
        self.loss, self.evaluator, self.most = loss, evaluator, most
        self.in_a_row = self.in_epoch = 0
        self._before: list[tuple[Tensor, Tensor]] = []  # each buffer, and its content before the step
        self._scale: float | None = None  # the gradient scaler's, which a skipped step must not move

    def attach(self, engine: SupervisedTrainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._judge)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._restore_scale)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._require_best)

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "in_epoch": self.in_epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.in_a_row, self.in_epoch = state["in_a_row"], state["in_epoch"]

    def _start_epoch(self, engine: Engine) -> None:
        self.in_epoch = 0

    def _remember(self, engine: SupervisedTrainer) -> None:
        buffers = [*engine.network.buffers(), *self.loss.buffers()]
        self._before = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def _judge(self, engine: SupervisedTrainer) -> None:
        forward, backward = self._finite(engine)
        scaler = engine.scaler if engine.scaler is not None and engine.scaler.is_enabled() else None
        if forward and (backward or (scaler is not None and scaler.get_scale() > 1)):
            self.in_a_row = 0
            return
        self.in_a_row, self.in_epoch = self.in_a_row + 1, self.in_epoch + 1
        with torch.no_grad():
            for buffer, before in self._before:
                buffer.copy_(before)
        for parameter in step_parameters(engine):
            if scaler is None or parameter.grad is None:
                parameter.grad = None  # an optimiser passes over a parameter without gradient
            else:
                parameter.grad.fill_(math.nan)  # and a scaler over a step with such a one
        self._scale = None if scaler is None else scaler.get_scale()
        engine.state.output[SKIPPED] = True
        what = "gradient" if forward else "loss or output"
        scans = ", ".join(map(str, engine.state.batch.get("scan", ())))
        logger.warning("step %d is left out, its %s is not finite: %s", engine.state.iteration, what, scans)
        if self.in_a_row >= self.most:
            rate = engine.optimizer.param_groups[0]["lr"]
            raise NotFiniteError(
                f"training diverged in epoch {engine.state.epoch}: {self.in_a_row} steps in a row (max_bad_steps) had "
                f"a {what} that is not finite; try a smaller learning_rate (it was {rate:g}), with --overwrite True"
            )

    def _finite(self, engine: SupervisedTrainer) -> tuple[bool, bool]:
        """Whether loss and outputs are finite, and whether the gradients are, in all processes."""
        output = engine.state.output
        forward = torch.isfinite(output["loss"].detach()).all() & torch.isfinite(output["pred"].detach()).all()
        gradients = [parameter.grad for parameter in step_parameters(engine) if parameter.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)  # no square that overflows
        flags = torch.stack([forward, torch.isfinite(largest).to(forward.device)]).float()
        return tuple(flag == 1 for flag in (idist.all_reduce(flags, "MIN") if world_size() > 1 else flags).tolist())

    def _restore_scale(self, engine: SupervisedTrainer) -> None:
        if self._scale is not None:
            engine.scaler.update(self._scale)
            self._scale = None

    def _count(self, engine: Engine) -> None:
        engine.state.metrics.pop(BAD_STEPS, None)  # an earlier epoch's
        if self.in_epoch:
            engine.state.metrics[BAD_STEPS] = self.in_epoch

    def _require_best(self, engine: Engine) -> None:
        if self.evaluator is not None and self.evaluator.state.best_metric_epoch == -1:
            raise NotFiniteError(
                "training ended without a network whose outputs on all validation scans are finite: there is no best "
                "checkpoint, and nothing is published; try a smaller learning_rate, with --overwrite True"
            )


def step_parameters(engine: SupervisedTrainer) -> list[nn.Parameter]:
    """All that the optimiser moves."""
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


class BestSaver(CheckpointSaver):
    """MONAI's saver of the best checkpoint, for which a network without a finite key metric is never the best.

    It has to come first among the evaluator's handlers: MONAI takes the first value for the best, whatever it is.
    """

    def metrics_completed(self, engine: Engine) -> None:
        if math.isfinite(engine.state.metrics[engine.state.key_metric_name]):
            super().metrics_completed(engine)
            return
        if engine.state.best_metric_epoch == engine.state.epoch:
            engine.state.best_metric, engine.state.best_metric_epoch = math.nan, -1
        logger.warning("epoch %d: an output is not finite, so that its network is not the best", engine.state.epoch)
