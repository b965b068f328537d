"""What a checkpoint says of the training that made it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events

from .. import __version__
from ..losses.sample_losses import answered_frequencies
from .group_loss import GroupLoss


class TrainingRecord:
    """Handler of the trainer and of its evaluator: which run, when, how good, and under which class frequencies.

    It has the ``state_dict`` that MONAI's ``CheckpointSaver`` puts beside the weights, plain data: ``run`` and
    ``mlflow_run`` (None without one), ``date`` (UTC), ``epoch``, ``metrics`` of that epoch's validation (none where it
    had none), ``settings`` that tell its objective, and ``class_frequencies`` by class, those under which the network
    answers (:func:`~.answered_frequencies`, of the epoch's weights), None where they are not known.

    Args:
        group_loss: of the trainer, which knows the objective and what each class weighed.
        metrics: names of those that are kept.
        run: has a ``run_name`` and a ``run_id``, as :class:`~.RunTracker`.
    """

    def __init__(self, class_names: Sequence[str], group_loss: GroupLoss, metrics: Sequence[str], run: Any) -> None:
        self.class_names, self.group_loss, self.names, self.run = tuple(class_names), group_loss, tuple(metrics), run
        self.settings: dict[str, Any] = {}
        self._epoch, self._metrics = 0, dict[str, float]()

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer or its evaluator, before what saves checkpoints."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep)

    def _begin(self, engine: Engine) -> None:
        self._epoch, self._metrics = engine.state.epoch, {}

    def _keep(self, engine: Engine) -> None:
        self._metrics |= {name: float(value) for name, value in engine.state.metrics.items() if name in self.names}

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Take the plain settings that tell the objective; the classes of its two levels are added."""
        loss = self.group_loss.loss
        levels = {name: getattr(loss, name, None) for name in ("sample_loss", "aggregation")}
        self.settings = {**settings, **{name: type(level).__name__ for name, level in levels.items() if level}}

    def state_dict(self) -> dict[str, Any]:
        shares, loss = self.group_loss.class_shares, getattr(self.group_loss.loss, "sample_loss", None)
        found = None if shares is None or loss is None else answered_frequencies(loss, shares)
        frequencies = None if found is None else dict(zip(self.class_names, found.tolist(), strict=True))
        return {
            "run": self.run.run_name, "mlflow_run": self.run.run_id, "fairlung": __version__,
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "epoch": self._epoch,
            "metrics": dict(self._metrics), "settings": dict(self.settings), "class_frequencies": frequencies,
        }  # fmt: skip
