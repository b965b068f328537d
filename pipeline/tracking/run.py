"""MLflow runs that say everything about a training or an evaluation, and never merge, stay open or stop a training.

MONAI's ``MLFlowHandler`` joins unfinished runs, leaves crashed ones RUNNING, and logs neither settings nor pictures, so
this speaks to MLflow's client. All is written down first (:mod:`~.tracking.journal`): when MLflow does not answer or
its disk is full, the run goes on and ``fairlung mlflow-sync OUTPUT_DIR`` sends it later.
"""

import atexit
import json
import logging
import subprocess
import threading
import time
import uuid
import warnings
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
from ..common.claims import exit_on_sigterm
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
from .journal import ARTIFACTS, Journal, batches, counted, deliver, refused_tag, stamp, subject
from .loggable import batch_digest, loggable, note_markdown, param, refuse_shared_names, short, shown_name
from .store import TrackingError, bounded, impatient, patience
from .system_load import SystemMonitor

logger = logging.getLogger(__name__)

COMMIT = "mlflow.source.git.commit"  # tag

# settings that an evaluation has of its own where a training has them too
JUDGED_WITH = (
    "bundle_root", "cohort", "output_dir", "tracking_uri", "experiment", "run_name", "parent_run", "tags", "device",
    "system_metrics", "num_workers", "cache_dir", "cache_limit", "cache_in_memory", "metric_prefix", "required_splits",
    "key_metric", "min_cell", "allow_empty_cells", "unknown_groups", "pseudonymize", "patient_key", "columns",
)  # fmt: skip
# settings that an evaluation does not use, and would tell as the configs have them
RECIPE = (
    "epochs", "accumulate", "every_group", "every_cell", "learning_rate", "weight_decay", "cosine_epochs", "dropout",
    "val_interval", "small_groups", "flip_prob", "rotation_prob", "brightness", "brightness_prob", "pretrained",
    "weights", "train_layers", "keep_checkpoints", "model_file",
)  # fmt: skip


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
        self._warned: set[str] = set()
        self._warned_of_copy = False
        self._artifacts_wait = False  # MLflow answers, but does not store them
        self._group_names: tuple[str, ...] = ()
        self._metric_names: set[str] = set()
        self._training: dict[str, Any] = {}  # the record of the training that an evaluation judges
        self._monitor: SystemMonitor | None = None
        self._load: list[list[Any]] = []  # that waits for the model's first numbers

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
        if self.kind != "train":
            judged = settings.get("checkpoints") or [settings.get("checkpoint")]
            training = training_dir(judged[0], self.output_dir) if len(judged) == 1 else None
            self._training = {} if training is None else json_or_nothing(training / run_folder.RECORD)
            trained = {} if training is None else json_or_nothing(training / run_folder.SETTINGS)
            settings = _of_training(settings, self._training.get("settings", {}), trained)
        away = None
        if self.tracking_uri != "":
            import mlflow

            refuse_shared_names(cohort.class_names)
            refuse_shared_names(cohort.group_names)
            self._uri = store.absolute(self.tracking_uri or mlflow.get_tracking_uri())
            self._group_names = tuple(cohort.group_names)
            away = self._connect()
        if self.kind == "train" and not resumed:  # an earlier training's
            with suppress(OSError):
                (self.output_dir / run_folder.RECORD).unlink(missing_ok=True)
        if self.tracking_uri == "":
            return
        self._about = _about(settings, self.kind, cohort)
        interrupted = self._interrupted() if resumed else {}
        self.run_name = interrupted.get("run_name", self.run_name)
        tags = self._start_tags(settings, cohort)
        self._open(tags, interrupted, away)
        if self.kind == "train":
            objective = {key: settings[key] for key in TRAINING_SETTINGS if settings.get(key) is not None}
            self._write_record(tags.get(COMMIT), objective)
        if not interrupted:  # MLflow takes a parameter once; settings that may change stand in settings.json
            self._submit("params", values={name: param(value) for name, value in settings.items()})
            self._log_cohort(cohort)
        self.log_text(yaml.safe_dump(loggable(config), sort_keys=False), "config/config.yaml")
        self.log_text(json.dumps(loggable(settings), indent=2), "config/settings.json")
        if self.system_metrics:
            self._monitor = SystemMonitor(self._log_load)
        place = f"{without_login(self._uri)}/#/experiments/{self._experiment_id}/runs/"
        shown = (place if self._uri.startswith("http") else "") + (self.run_id or "")
        logger.info("MLflow run %s (%s)", self.run_name, shown if self.run_id else "not sent yet")

    def _open(self, tags: Mapping[str, str], interrupted: Mapping[str, Any], away: Exception | None) -> None:
        uid = uuid.uuid4().hex
        self._journal = Journal(self.output_dir, uid)
        atexit.register(self.finish, "FAILED")  # however the process ends, short of a kill -9: the run is closed
        exit_on_sigterm()
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
                self._warn(f"what an earlier process left for MLflow is not sent: {short(error)}")
        return json_or_nothing(self.output_dir / run_folder.RECORD)

    def _connect(self) -> Exception | None:
        """Reach MLflow; the reason why not, unless the settings are at fault."""
        earlier = (self._training, json_or_nothing(self.output_dir / run_folder.RECORD))
        known = any(one.get("run_id") and one.get("tracking_uri") == without_login(self._uri) for one in earlier)
        try:
            known |= self.parent_run is not None
            self._client, self._experiment_id = store.connect(self._uri, self.experiment, known)
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
        named = (name for name in ("system", "network", "alpha", "seed", "fold") if settings.get(name) is not None)
        tags |= {f"fairlung.{name}": param(settings[name]) for name in named}
        tags |= {"fairlung.device": device_name(torch.device(self.device)), "mlflow.note.content": self._about}
        tags |= {"mlflow.parentRunId": self.parent_run} if self.parent_run else {}
        return tags | {str(name): param(value) for name, value in (self.tags or {}).items()}

    def _log_cohort(self, cohort: Cohort) -> None:
        import mlflow

        cells = cohort.cells()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a hint on columns of whole numbers
            source = mlflow.data.from_pandas(cells, name="cohort", digest=cohort.digest[:36])
        entity = {key: value for key, value in dict(source._to_mlflow_entity()).items() if value is not None}
        entity |= {"source_type": "code", "source": json.dumps({"tags": {}})}  # MLflow's names the user and a path
        self._submit("dataset", dataset=entity, context=self.kind)
        self.log_text(frame_csv(cells), "cohort/cells.csv")

    def _write_record(self, commit: str | None, training: Mapping[str, Any]) -> None:
        assert self._journal is not None
        content: dict[str, Any] = {"tracking_uri": self._uri, "run_id": self.run_id, "run_name": self.run_name}
        content |= {"journal": self._journal.uid, "settings": training, "commit": commit}
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
            waits = (op in ARTIFACTS and self._artifacts_wait) or (op == "end" and len(journal.unsent) > 1)
            if self._client is not None and not waits:
                try:
                    self._send(journal, [entry])
                except Exception as error:  # a training must not end on it
                    self._fails(journal, entry, error)
            if journal.unsent and journal.unsent[-1] is entry:
                if op == "file":
                    journal.keep_file(entry)
                if journal.problem is not None:
                    self._warn_of_copy(journal.problem)

    def _send(self, journal: Journal, entries: list[dict[str, Any]]) -> None:
        if entries[0]["op"] == "create":
            with impatient():
                self.run_id = bounded(patience(), store.create_run, self._client, self._experiment_id, entries[0])
            journal.write({"run_id": self.run_id})
        else:
            assert self.run_id is not None
            if entries[0]["op"] == "end" and journal.refused:
                self._send(journal, [journal.add("tags", values=refused_tag(journal.refused))])
            for refusal in deliver(self._client, self.run_id, entries, journal.folder):
                journal.refused.append(refusal)
                self._warn(f"MLflow refused something about run {self.run_name!r}, which goes on: {short(refusal)}")
        journal.sent(entries)

    def _fails(self, journal: Journal, entry: Mapping[str, Any], error: Exception) -> None:
        """Go on without MLflow, or, where it answers, without its store of artifacts."""
        if entry["op"] == "create" and store.is_mistake(error):  # such as no right to make a run
            self._journal = None
            journal.discard()
            raise TrackingError(f"MLflow at {without_login(self._uri)}: {short(error)}") from error
        if entry["op"] in ARTIFACTS and self._answers():
            self._artifacts_wait = True
            text = f"MLflow did not store {subject([entry])} ({short(error)}); it is kept here and sent at the end"
            self._warn(f"{text}, or later: fairlung mlflow-sync {self.output_dir}")
        else:
            self._client = None
            self._go_offline(error)

    def _answers(self) -> bool:
        try:
            with impatient():
                return bounded(patience(), store.living_run, self._client, self.run_id) is not None
        except Exception:
            return False

    def _go_offline(self, error: Exception) -> None:
        text = f"MLflow does not answer ({short(error)}); the run goes on and is kept here"
        self._warn(f"{text}. Send it later: fairlung mlflow-sync {self.output_dir}")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)

    def _warn_of_copy(self, error: OSError) -> None:
        if not self._warned_of_copy:
            self._warned_of_copy = True
            logger.warning("what MLflow did not take cannot be kept either, and will be missing: %s", short(error))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of an epoch, each under one name (:func:`shown_name`)."""
        if self.active:
            named = {shown_name(name, self._group_names): float(value) for name, value in metrics.items()}
            self._metric_names.update(named)
            now = int(time.time() * 1000)
            self._submit("metrics", values=[[name, value, now, step] for name, value in named.items()])

    def _log_load(self, values: list[list[Any]]) -> None:
        """Log the machine's load once the model has numbers: MLflow lists metrics in the order in which they came."""
        with self._lock:
            self._load += values
            if self._load and any(not name.endswith("/lr") for name in self._metric_names):
                values, self._load = self._load, []
                self._submit("metrics", values=values)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._submit("tags", values=dict(tags))

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
        headline = {"score", "gap", "abs_gap", "f1_macro", *(f"f1_{group}" for group in self._group_names)}
        best = {f"best_{split}_{name}": value for name, value in metrics.items() if name in headline}
        new = {k: v for k, v in best.items() if shown_name(k, self._group_names) not in self._metric_names}
        self.log_metrics(new, epoch or 0)
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
            if self._load:
                self._submit("metrics", values=self._load)
            self._submit("end", status=status)
            self._journal = None
            atexit.unregister(self.finish)
            if journal.unsent:
                self._send_rest(journal)
            for lack in refused_tag(journal.refused).values():
                logger.warning("MLflow run %s lacks what MLflow refused, %s", self.run_name, lack)
            journal.close()
            self.run_id = None

    def _send_rest(self, journal: Journal) -> None:
        try:
            with impatient():
                self._client, self._experiment_id = store.connect(self._uri, self.experiment, known=True)
                if self.run_id is None:  # a creation whose answer was lost
                    self.run_id = bounded(patience(), store.find_run, self._client, self._experiment_id, journal.uid)
                if self.run_id is None:
                    self._send(journal, journal.unsent[:1])
                assert self.run_id is not None
                sync.note_run_id(self.output_dir, journal.uid, self.run_id)
                for batch in batches(journal.unsent):
                    self._send(journal, batch)
                journal.sent(journal.unsent)
        except Exception as error:
            lacking = {subject([e]) if e["op"] in ARTIFACTS else e["op"] for e in journal.unsent if e["op"] != "end"}
            what = f"not complete and stays open: it lacks {counted(sorted(lacking)) or 'its end'}"
            text = "MLflow run %s is %s (%s). Send it later: fairlung mlflow-sync %s"
            logger.info(text, self.run_name, "not sent" if self.run_id is None else what, short(error), self.output_dir)
        else:
            logger.info("MLflow run %s was sent after all", self.run_name)

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Ignite handler: close the run as FAILED (KILLED when interrupted) and pass the exception on."""
        self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise error


@dataclass(eq=False)
class TrackTraining:
    """Logs the trainer's metrics and learning rate each epoch, and closes the run as FAILED if training crashes.

    After the first step it logs what tells two runs apart that should be alike: the number of threads, and a digest of
    the first batch and its loss. Where the batches are the same and the losses are not, the machines compute otherwise.
    """

    tracker: RunTracker
    optimizer: Optimizer

    def attach(self, engine: Engine) -> None:
        # the rate is read before the scheduler, which runs at the end of the epoch, moves it
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self._log_first_step)
        engine.add_event_handler(Events.EPOCH_STARTED, self._log_rate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.tracker.fail)

    def _log_first_step(self, engine: Engine) -> None:
        if not is_primary():
            return
        first = {"threads": str(torch.get_num_threads()), "first_batch": batch_digest(engine.state.batch)}
        first["first_loss"] = repr(float(engine.state.output["loss"].detach()))
        logger.info("%s", "  ".join(f"{name} {value}" for name, value in first.items()))
        self.tracker.log_tags({f"fairlung.{name}": value for name, value in first.items()})

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
        tags = {COMMIT: git("rev-parse", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return {}
    return tags | {"fairlung.uncommitted_changes": str(changed).lower()}


def _identity(record: Mapping[str, Any]) -> dict[str, Any] | None:
    return {key: record.get(key) for key in ("run_id", "journal")} if record else None


def _about(settings: Mapping[str, Any], kind: str, cohort: Cohort) -> str:
    told = {name: settings[name] for name in (*TRAINING_SETTINGS[1:], "network") if settings.get(name) is not None}
    named = [f"{name} {escape_markdown(param(value))}" for name, value in told.items()]
    what = ", ".join([f"**{escape_markdown(settings.get('system') or 'unknown system')}**", *named])
    scans = "SYNTHETIC scans (phantoms)" if cohort.synthetic else "scans"
    if kind != "train":
        return f"Evaluation of {what}, on {_count(cohort, settings.get('split'))} {scans}."
    return f"Training of {what}, on {_count(cohort, 'train')} {scans}, judged on {_count(cohort, 'val')} others."


def _count(cohort: Cohort, split: str | None) -> int:
    return int((cohort.table["split"] == split).sum()) if "split" in cohort.table else len(cohort.table)


def _of_training(settings: Mapping[str, Any], known: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's settings, those of its training in place of the configs' defaults.

    Args:
        settings: of the evaluation.
        known: what a training's record says of it.
        trained: all settings of the training; {} where its folder is not there: then the evaluation's own alone are
            told, since the others would be defaults.
    """
    if not trained:
        return {k: v for k, v in settings.items() if k not in TRAINING_SETTINGS and k not in RECIPE} | dict(known)
    own = {name: value for name, value in settings.items() if name not in trained or name in JUDGED_WITH}
    return dict(trained) | own | dict(known)
