"""MLflow runs that say everything about a training or an evaluation, and never merge, stay open or stop a training.

MONAI's ``MLFlowHandler`` joins unfinished runs, leaves crashed ones RUNNING, and logs neither settings nor pictures, so
this speaks to MLflow's client. All is written down first (:mod:`~.tracking.journal`): when MLflow does not answer or
its disk is full, the run goes on and ``fairlung mlflow-sync OUTPUT_DIR`` sends it later.
"""

import atexit
import json
import logging
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Engine, Events
from torch.optim import Optimizer

from ..common import run_folder
from ..common.distributed import is_primary
from ..common.files import json_or_nothing
from ..common.names import TRAINING_SETTINGS
from ..common.run_folder import EVALUATION_FILES, training_dir
from ..common.tables import frame_csv
from ..common.text import device_name, without_login
from ..data.cohort import Cohort
from ..evaluation.records import Audit
from ..reports.document import escape_markdown
from . import store, sync
from .journal import Journal, batches, is_refusal, send, stamp
from .loggable import loggable, metric_name, note_markdown, param, refuse_shared_names, short, with_grouped_names
from .store import TrackingError, impatient
from .system_load import SystemMonitor

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class RunTracker:
    """One MLflow run. Its folder ``output_dir`` says in mlflow_run.json which run it belongs to."""

    # where MLflow keeps runs; None takes MLflow's own choice (MLFLOW_TRACKING_URI, else a SQLite store in the working
    # directory); "" tracks nothing
    tracking_uri: str | None
    experiment: str  # made when it does not exist
    run_name: str  # a suffix makes it unique
    output_dir: Path
    source_dir: Path = Path()  # a folder in the git checkout whose commit the run states
    kind: str = "train"  # or evaluate, a tag; an evaluation is nested under the training of its checkpoint
    parent_run: str | None = None  # id of the MLflow run to nest a training under, such as a study's
    tags: Mapping[str, Any] | None = None
    system_metrics: bool = False  # log the load of CPU, memory, disk, network and GPU
    device: str | torch.device = "cpu"  # whose name the run states

    def __post_init__(self) -> None:
        self.run_name = f"{self.run_name} {time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        self.output_dir, self.source_dir = Path(self.output_dir), Path(self.source_dir)
        self.run_id: str | None = None  # None too while a run has not reached MLflow
        self._uri = self._experiment_id = self._about = ""
        self._client: Any = None  # None while MLflow is not reached
        self._journal: Journal | None = None
        self._lock = threading.RLock()
        self._warned = self._warned_of_copy = False
        self._group_names: tuple[str, ...] = ()
        self._metric_names: set[str] = set()
        self._training: dict[str, Any] = {}  # the record of the training that an evaluation judges
        self._monitor: SystemMonitor | None = None

    @property
    def active(self) -> bool:
        return self._journal is not None

    def start(
        self, settings: Mapping[str, Any], config: Mapping[str, Any], cohort: Cohort, resumed: bool = False
    ) -> None:
        """Open the run and log what is known before the first step.

        Settings become parameters; those of an evaluation's training replace its own. The merged config becomes
        ``config/config.yaml``, the cohort a data set with its digest and the table of its cells, without scans and
        patients. A ``resumed`` training goes on in the run that its folder names, if MLflow has it.

        Raises:
            TrackingError: a mistyped address, a deleted experiment, an unknown parent run, classes or groups that would
                share a metric's name. A server that is away or a full disk is a warning.
        """
        if not is_primary():
            return
        if self.kind == "train" and not resumed:  # an earlier training's
            with suppress(OSError):
                (self.output_dir / run_folder.RECORD).unlink(missing_ok=True)
        if self.tracking_uri == "":
            return
        import mlflow

        refuse_shared_names(cohort.class_names)
        refuse_shared_names(cohort.group_names)
        self._uri = store.absolute(self.tracking_uri or mlflow.get_tracking_uri())
        self._group_names = tuple(cohort.group_names)
        away = self._connect()
        if self.kind != "train":
            training = training_dir(settings.get("checkpoint"), self.output_dir)
            self._training = {} if training is None else json_or_nothing(training / run_folder.RECORD)
            known = self._training.get("settings", {})
            settings = {k: v for k, v in settings.items() if k not in TRAINING_SETTINGS} | known
        self._about = _about(settings, self.kind, cohort)
        interrupted = self._interrupted() if resumed else {}
        self.run_name = interrupted.get("run_name", self.run_name)
        self._open(self._start_tags(settings, cohort), interrupted, away)
        if self.kind == "train":
            self._write_record({key: settings[key] for key in TRAINING_SETTINGS if settings.get(key) is not None})
        if not interrupted:  # MLflow takes a parameter once; settings that may change stand in settings.json
            self._submit("params", values={name: param(value) for name, value in settings.items()})
            self._log_cohort(cohort)
        self.log_text(yaml.safe_dump(loggable(config), sort_keys=False), "config/config.yaml")
        self.log_text(json.dumps(loggable(settings), indent=2), "config/settings.json")
        if self.system_metrics:
            self._monitor = SystemMonitor(lambda values: self._submit("metrics", values=values))
        logger.info("MLflow run %s (%s)", self.run_name, self.run_id or "not sent yet")

    def _open(self, tags: Mapping[str, str], interrupted: Mapping[str, Any], away: Exception | None) -> None:
        uid = uuid.uuid4().hex
        self._journal = Journal(self.output_dir, uid)
        atexit.register(self.finish, "FAILED")  # however the process ends, short of a kill -9: the run is closed
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # a scheduler's stop: ends as sys.exit does
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        if away is not None:
            self._go_offline(away)
        uri = self._uri if without_login(self._uri) == self._uri else None
        about = {"training": _identity(self._training), "interrupted": _identity(interrupted)}
        tags = {**tags, store.MARK: uid}
        self._submit("create", uri=uri, experiment=self.experiment, name=self.run_name, tags=tags, **about)

    def _interrupted(self) -> dict[str, Any]:
        """The record of the training that goes on, after what it could not send itself was sent."""
        if self._client is not None:
            try:
                sync.sync(self.output_dir, self._uri)
            except Exception as error:  # sent another time
                self._warn("what an earlier process left for MLflow is not sent: %s", error)
        return json_or_nothing(self.output_dir / run_folder.RECORD)

    def _connect(self) -> Exception | None:
        """Reach MLflow; the reason why not, unless the settings are at fault."""
        try:
            self._client, self._experiment_id = store.connect(self._uri, self.experiment)
            if self.parent_run and self.kind == "train" and store.living_run(self._client, self.parent_run) is None:
                raise TrackingError(f"parent_run: MLflow has no run {self.parent_run!r}")
        except TrackingError:
            raise
        except Exception as error:
            self._client = None
            return error
        return None

    def _start_tags(self, settings: Mapping[str, Any], cohort: Cohort) -> dict[str, str]:
        tags = {"mlflow.source.name": self.source_dir.resolve().name, "mlflow.source.type": "LOCAL"}
        tags |= {"fairlung.kind": self.kind, "fairlung.cohort_digest": cohort.digest, **_git_tags(self.source_dir)}
        tags |= {"fairlung.synthetic": "true"} if cohort.synthetic else {}
        named = (name for name in ("system", "alpha", "seed", "fold") if settings.get(name) is not None)
        tags |= {f"fairlung.{name}": param(settings[name]) for name in named}
        tags |= {"fairlung.device": device_name(torch.device(self.device)), "mlflow.note.content": self._about}
        tags |= {"mlflow.parentRunId": self.parent_run} if self.parent_run else {}
        return tags | {str(name): param(value) for name, value in (self.tags or {}).items()}

    def _log_cohort(self, cohort: Cohort) -> None:
        import mlflow

        cells = cohort.cells()
        source = mlflow.data.from_pandas(cells, name="cohort", digest=cohort.digest[:36])
        entity = {key: value for key, value in dict(source._to_mlflow_entity()).items() if value is not None}
        entity |= {"source_type": "code", "source": json.dumps({"tags": {}})}  # MLflow's names the user and a path
        self._submit("dataset", dataset=entity, context=self.kind)
        self.log_text(frame_csv(cells), "cohort/cells.csv")

    def _write_record(self, training: Mapping[str, Any]) -> None:
        assert self._journal is not None
        content: dict[str, Any] = {"tracking_uri": self._uri, "run_id": self.run_id, "run_name": self.run_name}
        content |= {"journal": self._journal.uid, "settings": training}
        content |= {"commit": _git_tags(self.source_dir).get("mlflow.source.git.commit")}
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / run_folder.RECORD).write_text(json.dumps(loggable(content), indent=2))
        except OSError as error:
            self._warn_of_copy(error)

    def _submit(self, op: str, **content: Any) -> None:
        """Write an entry down and send it, unless MLflow was away already."""
        with self._lock:
            journal = self._journal
            if journal is None:
                return
            entry = journal.add(op, **content)
            if self._client is not None:
                try:
                    with impatient():
                        self._send(journal, [entry])
                except Exception as error:  # a training must not end on it
                    self._client = None
                    self._go_offline(error)
            if self._client is None:
                if op == "file":
                    journal.keep_file(entry)
                if journal.problem is not None:
                    self._warn_of_copy(journal.problem)

    def _send(self, journal: Journal, entries: list[dict[str, Any]]) -> None:
        if entries[0]["op"] == "create":
            self.run_id = store.create_run(self._client, self._experiment_id, entries[0])
            journal.write({"run_id": self.run_id})
        else:
            assert self.run_id is not None
            try:
                send(self._client, self.run_id, entries, journal.folder)
            except Exception as error:
                if not is_refusal(self._client, self.run_id, error):
                    raise
                self._warn("MLflow refused something about run %r, which goes on: %s", self.run_name, error)
        journal.sent(entries)

    def _go_offline(self, error: Exception) -> None:
        text = "MLflow does not answer (%s); the run goes on and is kept here. Send it later: fairlung mlflow-sync %s"
        self._warn(text, error, self.output_dir)

    def _warn(self, message: str, *values: Any) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *(short(v) if isinstance(v, Exception) else v for v in values))

    def _warn_of_copy(self, error: OSError) -> None:
        if not self._warned_of_copy:
            self._warned_of_copy = True
            logger.warning("what MLflow did not take cannot be kept either, and will be missing: %s", short(error))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of an epoch; the headline ones under a grouped name too (:func:`with_grouped_names`)."""
        if self.active:
            named = with_grouped_names(metrics, self._group_names)
            self._metric_names.update(named)
            now = int(time.time() * 1000)
            self._submit("metrics", values=[[metric_name(k), float(v), now, step] for k, v in named.items()])

    def log_text(self, text: str, name: str) -> None:
        self._submit("text", text=text, name=name)

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file under the artifacts; a missing one is an error."""
        if self.active:
            path = Path(path).absolute()
            self._submit("file", source=str(path), folder=folder, **stamp(path))

    def log_evaluation(
        self, evaluation_dir: str | Path, split: str, audit: Audit | None = None, epoch: int | None = None
    ) -> None:
        """Log the tables and pictures of an evaluation (:func:`~.write_evaluation`), and its headline as description.

        A training's headline metrics of its best ``epoch`` are logged as ``<split>/best_<name>``: runs are compared by
        them, where the curves end with the last epoch.
        """
        if not self.active:
            return
        folder = Path(evaluation_dir)
        self._log_files(folder, EVALUATION_FILES, f"evaluation/{split}")
        result = json.loads((folder / run_folder.METRICS).read_text())
        if self.kind == "train":
            self._log_best(result["metrics"], split, epoch)
        else:
            epoch = self._training.get("best_epoch")
        note = note_markdown({"about": self._about, **result, "audit": audit, "epoch": epoch})
        self._submit("tags", values={"mlflow.note.content": note[:8000]})  # MLflow's limit

    def log_review(self, evaluation_dir: str | Path, split: str) -> None:
        """Log an evaluation's report and the pictures of its worst errors, where there are any."""
        self._log_files(Path(evaluation_dir), (run_folder.REPORT,), f"evaluation/{split}")
        self._log_files(Path(evaluation_dir), ("errors/*",), f"evaluation/{split}/errors")

    def _log_files(self, source: Path, patterns: Sequence[str], folder: str) -> None:
        for path in (path for pattern in patterns for path in sorted(source.glob(pattern))):
            self.log_file(path, folder)

    def _log_best(self, metrics: Mapping[str, float], split: str, epoch: int | None) -> None:
        names = with_grouped_names({f"{split}_{name}": value for name, value in metrics.items()}, self._group_names)
        best = {name.replace("/", "/best_"): value for name, value in names.items() if "/" in name}
        self.log_metrics({k: v for k, v in best.items() if k not in self._metric_names}, epoch or 0)
        path = self.output_dir / run_folder.RECORD
        if epoch is not None and (record := json_or_nothing(path)):
            with suppress(OSError):
                path.write_text(json.dumps(record | {"best_epoch": epoch}, indent=2))

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run, unless it is closed, and try once more to send what MLflow did not take."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.stop()
        with self._lock:
            journal = self._journal
            if journal is None:
                return
            self._submit("end", status=status)
            self._journal = None
            atexit.unregister(self.finish)
            if journal.unsent:
                self._send_rest(journal)
            journal.close()
            self.run_id = None

    def _send_rest(self, journal: Journal) -> None:
        try:
            with impatient():
                self._client, self._experiment_id = store.connect(self._uri, self.experiment)
                if self.run_id is None:  # a creation whose answer was lost
                    self.run_id = store.find_run(self._client, self._experiment_id, journal.uid)
                if self.run_id is None:
                    self._send(journal, journal.unsent[:1])
                assert self.run_id is not None
                sync.note_run_id(self.output_dir, journal.uid, self.run_id)
                for batch in batches(journal.unsent):
                    self._send(journal, batch)
                journal.sent(journal.unsent)
        except Exception as error:
            text = "MLflow run %s is not sent (%s). Send it later: fairlung mlflow-sync %s"
            logger.info(text, self.run_name, short(error), self.output_dir)
        else:
            logger.info("MLflow run %s was sent after all", self.run_name)

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Ignite handler: close the run as FAILED (KILLED when interrupted) and pass the exception on."""
        self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise error


@dataclass(eq=False)
class TrackTraining:
    """Logs the trainer's metrics and learning rate each epoch, and closes the run as FAILED if training crashes."""

    tracker: RunTracker
    optimizer: Optimizer

    def attach(self, engine: Engine) -> None:
        # the rate is read before the scheduler, which runs at the end of the epoch, moves it
        engine.add_event_handler(Events.EPOCH_STARTED, self._log_rate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.tracker.fail)

    def _log_rate(self, engine: Engine) -> None:
        self.tracker.log_metrics({"lr": self.optimizer.param_groups[0]["lr"]}, engine.state.epoch)

    def _log_epoch(self, engine: Engine) -> None:
        self.tracker.log_metrics(engine.state.metrics, engine.state.epoch)


@dataclass(eq=False)
class TrackEvaluation:
    """Logs the evaluator's metrics each epoch; ``fail`` closes the run when an evaluation that stands alone crashes."""

    tracker: RunTracker
    fail: bool = False

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
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        tags = {"mlflow.source.git.commit": git("rev-parse", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return {}
    return tags | {"fairlung.uncommitted_changes": str(changed).lower()}


def _identity(record: Mapping[str, Any]) -> dict[str, Any] | None:
    return {key: record.get(key) for key in ("run_id", "journal")} if record else None


def _about(settings: Mapping[str, Any], kind: str, cohort: Cohort) -> str:
    named = [
        f"{name} {escape_markdown(param(settings[name]))}"
        for name in TRAINING_SETTINGS[1:]
        if settings.get(name) is not None
    ]
    what = ", ".join([f"**{escape_markdown(settings.get('system') or 'unknown system')}**", *named])
    scans = "SYNTHETIC scans (phantoms)" if cohort.synthetic else "scans"
    return f"{'Training' if kind == 'train' else 'Evaluation'} of {what}, on {len(cohort.table)} {scans}."
