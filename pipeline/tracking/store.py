"""The MLflow store: connecting, finding and making runs."""

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from ..common.errors import UserError
from ..common.text import without_login

MARK = "fairlung.journal"  # tag: the journal's id, by which its run is found again
NOTE = "mlflow.note.content"  # tag: the description that the page shows
LEGEND = """\
**P** is the mean of the groups' (as a rule, the sexes') macro F1; the **gap** is the first one's minus the second's.

| metric | what it is |
| --- | --- |
| `val/f1/<group>`, `test/f1/<group>` | macro F1 of each group's scans |
| `val/score`, `val/gap`, `val/abs_gap` | P, gap and its size |
| `val/best_score`, `val/best_gap`, `val/best_f1_<group>` | of a training's best epoch: compare trainings by them |
| `val/f1_macro` | macro F1 of all groups pooled |
| `val/cells/...` | F1, precision and recall of a class in a group |
| `train/loss`, `train/lr` | loss and learning rate of an epoch |
| `workload/...` | load of CPU, memory, disk, network and GPU |

An evaluation is nested under its training; its description has the intervals, its artifacts the report.
"""
# the page shows runs of training, not of agents
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", NOTE: LEGEND}
# MLflow's own 7 retries of 120 s would hold up a training for minutes; an answer takes far less than this
LIMITS = {"MAX_RETRIES": "1", "BACKOFF_FACTOR": "1", "TIMEOUT": "10"}
IMPATIENCE = {f"MLFLOW_HTTP_REQUEST_{name}": value for name, value in LIMITS.items()}
UPLOAD_TIMEOUT = "60"  # the server answers when it has stored the file
WAIT_FOR_TABLES = 120.0  # seconds in which this process, or another one, makes a new database
UNKNOWN_HOST = re.compile("NameResolutionError|could not translate host|Name or service not known|Unknown MySQL server")
REFUSED_LOGIN = "password authentication failed|does not exist|no pg_hba|Access denied|Unknown database"
NO_STORE = "SSLError|not in a valid JSON|Invalid url|Could not parse|unable to open database|configuration failed with"
MISTAKE = re.compile(f"{REFUSED_LOGIN}|{NO_STORE}")
OLD_NEWS = (  # log lines of libraries: what the error says that follows, and a line for each table of a new database
    "Retrying (", "SQLAlchemy database error", "SQLAlchemy engine could not be created", "Running upgrade",
    "Context impl", "Will assume",
)  # fmt: skip
Answer = TypeVar("Answer")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported, which reads it then
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a hundred bars of a registration, in a log too
_ours: dict[str, str] = {}  # what impatient() put into the environment


class TrackingError(UserError, ValueError):
    """MLflow cannot be used as the settings say: a mistyped address, a deleted experiment, a refused login."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log line of a library says more than the error that it raises as well."""
    return not record.getMessage().startswith(OLD_NEWS)


@contextmanager
def impatient(**settings: str) -> Iterator[None]:
    """MLflow's HTTP client gives up in seconds, unless the user's environment says otherwise, and logs no retry.

    Nor does it print the addresses of runs, which would show a login.
    """
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils", "alembic.runtime.migration"):
        logging.getLogger(name).addFilter(_is_news)  # twice is once
    outer = {name: _ours[name] for name in settings if name in _ours}  # this one, inside another, goes further
    ours = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", **IMPATIENCE, **settings}
    ours = {name: value for name, value in ours.items() if name not in os.environ or name in outer}
    os.environ.update(ours)
    _ours.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
            _ours.pop(name, None)
        os.environ.update(outer)
        _ours.update(outer)


def patience() -> float:
    """Seconds for one answer, whatever a store is busy with: two requests that end in time, and the pause between."""
    given = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    return 3 * max(float(given if given.isdigit() else 0), float(LIMITS["TIMEOUT"]))


def bounded(seconds: float, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function returns or raises, or TimeoutError when that takes longer: it is then left to itself."""
    outcome: Future[Answer] = Future()

    def work() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    try:
        threading.Thread(target=work, daemon=True, name="fairlung-mlflow").start()
    except RuntimeError:  # an interpreter that ends starts no thread
        work()
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        if outcome.done():
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} s") from error


def is_mistake(error: BaseException) -> bool:
    """Whether the settings are at fault, and not a server that is away or a disk that is full."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() not in (408, 429)
    return isinstance(error, (ValueError, ImportError, PermissionError, FileNotFoundError, NotADirectoryError))


def connect(uri: str, experiment: str, known: bool = False) -> tuple[Any, str]:
    """MLflow's client of a store that answers, and the id of an experiment, which is made when it does not exist.

    TrackingError: the settings are at fault, as with a host that does not exist, unless the store is ``known`` to have
    answered before. Any other error: the store does not answer.
    """
    try:
        with impatient():
            return bounded(patience() if uri.startswith("http") else WAIT_FOR_TABLES, _connect, uri, experiment)
    except TrackingError:
        raise
    except Exception as error:
        text = " ".join(without_login(str(error)).split())
        if (unknown := UNKNOWN_HOST.search(text)) and not known:
            raise TrackingError(f"MLflow at {without_login(uri)}: there is no such host") from error
        if not unknown and (is_mistake(error) or MISTAKE.search(text)):
            raise TrackingError(f"MLflow at {without_login(uri)}: {text}") from error
        raise


def _connect(uri: str, experiment: str) -> tuple[Any, str]:
    import mlflow

    if re.match(r"sqlite:(?!///.)|sqlite:///:memory:", uri):
        raise ValueError("a SQLite store is named with three slashes and a path, sqlite:///folder/mlflow.db")
    with _first_access(uri):
        _probe(uri)
        client = mlflow.MlflowClient(tracking_uri=uri)
        return client, _experiment_id(client, experiment)


def _probe(uri: str) -> None:
    """One attempt on a database: MLflow itself makes ten, which take two minutes."""
    scheme = re.split(r"[+:]", uri)[0]
    if uri.startswith("sqlite:///"):
        try:
            with closing(sqlite3.connect(_sqlite_file(uri), timeout=20)) as store:
                store.execute("pragma schema_version")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise TrackingError(f"{_sqlite_file(uri)}: {error}") from error
    elif scheme in ("postgresql", "mysql", "mssql"):
        import sqlalchemy

        try:
            seconds = {} if scheme == "mssql" else {"connect_timeout": 10}
            engine = sqlalchemy.create_engine(uri, connect_args=seconds, poolclass=sqlalchemy.NullPool)
        except sqlalchemy.exc.ArgumentError as error:
            raise TrackingError(str(error)) from error
        engine.connect().close()


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?")[0])


def _first_access(uri: str) -> AbstractContextManager[object]:
    """One process at a time: two that create the tables of the same SQLite file at once ruin it."""
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    path = _sqlite_file(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=WAIT_FOR_TABLES)


def absolute(uri: str) -> str:
    """An address that means the same in another working directory."""
    named = uri.startswith("sqlite:///") and uri != "sqlite:///:memory:"
    return f"sqlite:///{_sqlite_file(uri).absolute()}" if named else uri


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, tags=EXPERIMENT_TAGS)
        except MlflowException:  # another process made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(f"MLflow experiment {name!r} is deleted; restore it or choose another")
    if NOTE not in found.tags:  # a user's own stays, and one that was emptied too
        with suppress(MlflowException):
            client.set_experiment_tag(found.experiment_id, NOTE, LEGEND)
    return found.experiment_id


def find_run(client: Any, experiment: str, uid: str) -> str | None:
    found = client.search_runs([experiment], filter_string=f"tags.`{MARK}` = '{uid}'", max_results=1)
    return found[0].info.run_id if found else None


def living_run(client: Any, run_id: str | None) -> Any:
    """The run of an id; None when there is none or it is deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no id at all
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _known_run(client: Any, experiment: str, record: Mapping[str, Any]) -> tuple[Any, str | None]:
    run = living_run(client, record["run_id"])
    return run, run.info.run_id if run else find_run(client, experiment, record["journal"])


def create_run(client: Any, experiment: str, entry: Mapping[str, Any]) -> str:
    """Make the run of a ``create`` entry, nested under its training's where that is in the same experiment.

    The run of an interrupted training is opened again, where there is one.
    """
    tags = dict(entry["tags"])
    if interrupted := entry.get("interrupted"):
        _, run_id = _known_run(client, experiment, interrupted)
        if run_id:
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, MARK, tags[MARK])
            return run_id
    if training := entry.get("training"):
        parent, run_id = _known_run(client, experiment, training)
        if run_id:
            tags["fairlung.training_run_id"] = run_id
            if parent is None or parent.info.experiment_id == experiment:
                tags["mlflow.parentRunId"] = run_id
    run = client.create_run(experiment, start_time=entry["time"], run_name=entry["name"], tags=tags)
    return run.info.run_id
