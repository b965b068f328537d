"""Engine handlers that log a training or an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ignite.engine import Engine, Events

from .run import RunTracker

if TYPE_CHECKING:
    from torch.optim import Optimizer


class TrackTraining:
    """Logs the trainer's metrics and learning rate each epoch, and closes the run as FAILED if training crashes."""

    def __init__(self, tracker: RunTracker, optimizer: Optimizer) -> None:
        self.tracker = tracker
        self.optimizer = optimizer

    def attach(self, engine: Engine) -> None:
        # the rate is read before the scheduler, which runs at the end of the epoch, moves it
        engine.add_event_handler(Events.EPOCH_STARTED, self._log_rate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.tracker.fail)

    def _log_rate(self, engine: Engine) -> None:
        self.tracker.log_metrics({"lr": self.optimizer.param_groups[0]["lr"]}, engine.state.epoch)

    def _log_epoch(self, engine: Engine) -> None:
        self.tracker.log_metrics(engine.state.metrics, engine.state.epoch)


class TrackEvaluation:
    """Logs the evaluator's metrics each epoch; ``fail`` closes the run when an evaluation that stands alone crashes."""

    def __init__(self, tracker: RunTracker, fail: bool = False) -> None:
        self.tracker = tracker
        self.fail = fail

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        if self.fail:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self.tracker.fail)

    def _log_epoch(self, engine: Engine) -> None:
        best = {} if self.fail else {f"best_{engine.state.key_metric_name}": engine.state.best_metric}
        self.tracker.log_metrics({**engine.state.metrics, **best}, engine.state.epoch)
