"""The record of a training's epochs: a line in the log, and history.csv with every number."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Evaluator, SupervisedTrainer

from ..common.distributed import is_primary
from ..common.files import replacing

logger = logging.getLogger(__name__)


class EpochLog:
    """Handler of any engine: a line an epoch, ``label`` and those metrics of ``names`` that the engine has."""

    def __init__(self, names: Sequence[str], label: str) -> None:
        self.names, self.label = tuple(names), label

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not is_primary():
            return
        shown = [f"{name} {engine.state.metrics[name]:.4f}" for name in self.names if name in engine.state.metrics]
        if isinstance(engine, Evaluator) and 1 < engine.state.epoch == engine.state.best_metric_epoch:
            shown.append("best so far")
        logger.info("epoch %d  %s  %s", engine.state.epoch, self.label, "  ".join(shown))


class MetricHistory:
    """Handler of the trainer: every number of every epoch in a CSV of columns ``epoch``, ``metric``, ``value``.

    The trainer gives its metrics and ``lr``, the rate that the epoch was trained with; the evaluator, if any, its
    metrics and ``best_<key metric>``, the best value so far. A training that is resumed at epoch k keeps the rows of
    earlier epochs. The file is never half written; one that cannot be written is a warning, given once.
    """

    COLUMNS = ("epoch", "metric", "value")

    def __init__(self, path: str | Path, evaluator: Engine | None = None) -> None:
        self.path, self.evaluator = Path(path), evaluator
        self._rows: list[tuple[int, str, float]] = []
        self._started = self._warned = False
        self._rate: float | None = None

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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as part:
                pd.DataFrame(self._rows, columns=list(self.COLUMNS)).to_csv(part, index=False, na_rep="nan")
        except OSError as error:
            self._warn("the training goes on: %s", error)

    def _warn(self, message: str, *values: Any) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *values)
