"""MLflow runs that say everything about a training or an evaluation, and never merge or stay open.

MONAI's ``MLFlowHandler`` joins unfinished runs, leaves crashed ones RUNNING, and logs neither settings nor pictures;
this speaks to MLflow's client instead. mlflow is imported only when a run is tracked.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from ignite.engine import Engine, Events

from .distributed import is_primary
from .predictions import EVALUATION_FILES, write_evaluation

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .cohort import Cohort

logger = logging.getLogger(__name__)

MAX_PARAM_LENGTH = 6000  # MLflow's limit
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows runs of training, not of agents


class RunTracker:
    """One MLflow run.

    Args:
        tracking_uri: where MLflow keeps runs; None takes MLflow's own choice (``MLFLOW_TRACKING_URI``, else a SQLite
            store in the working directory); "" tracks nothing.
        experiment: MLflow experiment, made when it does not exist.
        run_name: readable name; a suffix makes it unique.
        output_dir: the job's output folder; ``mlflow_run.json`` in it says which run it belongs to.
        source_dir: a folder in the git checkout whose commit the run states.
        kind: ``train`` or ``evaluate``, a tag.
    """

    def __init__(
        self,
        tracking_uri: str | None,
        experiment: str,
        run_name: str,
        output_dir: str | Path,
        source_dir: str | Path = ".",
        kind: str = "train",
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.run_name = f"{run_name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        self.output_dir = Path(output_dir)
        self.source_dir = Path(source_dir)
        self.kind = kind
        self.run_id: str | None = None
        self._client: Any = None

    @property
    def active(self) -> bool:
        """Whether a run is open."""
        return self.run_id is not None

    def start(self, settings: Mapping[str, Any], config: Mapping[str, Any], cohort: Cohort) -> None:
        """Open the run and log what is known before the first step.

        Args:
            settings: plain settings, logged as parameters.
            config: the merged config, logged as ``config/config.yaml``.
            cohort: logged as a data set with its digest, and as the table of its cells. Scan names, patients and other
                columns of the cohort are not logged.
        """
        if self.tracking_uri == "" or not is_primary():
            return
        import mlflow
        from mlflow.entities import DatasetInput, InputTag, Param

        uri = self.tracking_uri or mlflow.get_tracking_uri()
        with _first_access(uri):
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            experiment_id = self._experiment_id()
        tags = {"mlflow.source.name": self.source_dir.resolve().name, "mlflow.source.type": "LOCAL"}
        tags |= {"fairlung.kind": self.kind, "fairlung.cohort_digest": cohort.digest, **_git_tags(self.source_dir)}
        tags |= {"fairlung.synthetic": "true"} if cohort.synthetic else {}
        tags |= _training_run_tag(self.output_dir) if self.kind != "train" else {}
        self.run_id = self._client.create_run(experiment_id, run_name=self.run_name, tags=tags).info.run_id
        atexit.register(self.finish, "FAILED")  # however the process ends, short of a kill -9: the run is closed
        _exit_on_sigterm()
        params = [Param(name, _param(value)) for name, value in settings.items()]
        self._client.log_batch(self.run_id, params=params)
        cells = cohort.cells()
        source = mlflow.data.from_pandas(cells, name="cohort", digest=cohort.digest[:36])
        context = [InputTag("mlflow.data.context", self.kind)]
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(source._to_mlflow_entity(), tags=context)])
        self.log_text(cells.to_csv(index=False), "cohort/cells.csv")
        self.log_text(yaml.safe_dump(_loggable(config), sort_keys=False), "config/config.yaml")
        self.log_text(json.dumps(_loggable(settings), indent=2), "config/settings.json")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.kind == "train":
            (self.output_dir / "mlflow_run.json").write_text(
                json.dumps(_loggable({"tracking_uri": uri, "run_id": self.run_id, "run_name": self.run_name}), indent=2)
            )
        logger.info("MLflow run %s (%s)", self.run_name, self.run_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise ValueError(f"MLflow experiment {self.experiment!r} is deleted; restore it or choose another")
            return found.experiment_id
        try:
            return self._client.create_experiment(self.experiment, tags=EXPERIMENT_TAGS)
        except MlflowException:  # another process made it meanwhile
            found = self._client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return found.experiment_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of an epoch."""
        if self.active:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            entries = [Metric(_metric_name(name), float(value), now, step) for name, value in metrics.items()]
            self._client.log_batch(self.run_id, metrics=entries)

    def log_text(self, text: str, name: str) -> None:
        """Log a text file under the artifacts."""
        if self.active:
            self._client.log_text(self.run_id, text, name)

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file under the artifacts; a missing one is an error."""
        if self.active:
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_evaluation(self, predictions: str | Path, split: str, **summary: Any) -> dict[str, Any]:
        """Summarise a prediction table (:func:`~.predictions.write_evaluation`) and log it with its pictures."""
        if not is_primary():
            return {}
        result = write_evaluation(predictions, split=split, **summary)
        folder = f"evaluation/{split}"
        for name in EVALUATION_FILES:
            path = Path(predictions).with_name(name)
            if path.exists() or name != "confusion.png":  # without matplotlib there is no picture
                self.log_file(path, folder)
        return result

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run; does nothing when it is closed already."""
        if self.active:
            run_id, self.run_id = self.run_id, None
            atexit.unregister(self.finish)
            self._client.set_terminated(run_id, status)

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Ignite handler: close the run as FAILED (KILLED when interrupted) and pass the exception on."""
        self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise error


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


def _git_tags(folder: Path) -> dict[str, str]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit, "fairlung.uncommitted_changes": str(changed).lower()}


def _training_run_tag(output_dir: Path) -> dict[str, str]:
    record = output_dir / "mlflow_run.json"
    return {"fairlung.training_run_id": json.loads(record.read_text())["run_id"]} if record.is_file() else {}


@contextmanager
def _first_access(uri: str) -> Iterator[None]:
    """One process at a time: two that create the tables of the same SQLite file at once ruin it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    from filelock import FileLock

    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def _exit_on_sigterm() -> None:
    """Let SIGTERM (a scheduler's or a container's stop) end the process as sys.exit does, so that runs are closed."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. :/``; other signs of class and group names become ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _param(value: Any) -> str:
    value = _loggable(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 3] + "..."


def _loggable(value: Any) -> Any:
    """A setting as plain data, the user and password of an address left out wherever one stands."""
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@\s]+@", "", value)
    if isinstance(value, Mapping):
        return {str(key): _loggable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_loggable(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
