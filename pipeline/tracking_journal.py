"""What a run says to MLflow, written down before it is sent: what a server did not take can be sent later.

A journal is a folder ``<output_dir>/mlflow_pending/<id>`` with ``journal.jsonl`` and copies of files. Its lines are
entries (create, params, metrics, dataset, text, file, tags, end) numbered by ``n``, and marks: which entries were sent,
where files were copied, which MLflow run it is. Sending an entry twice changes nothing in MLflow, and the run carries
the journal's id as a tag, so a mark that was lost makes no duplicate. The folder is removed once all is sent.

It holds what MLflow would have got: no password, and of the patients no more than the artifacts show.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import UserError

PENDING = "mlflow_pending"  # folder in an output_dir
JOURNAL = "journal.jsonl"
RECORD = "mlflow_run.json"  # file in an output_dir: the run of its training
MARK = "fairlung.journal"  # tag: the journal's id, by which its run is found again
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows runs of training, not of agents
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits on one request

# MLflow's own 7 retries of 120 s would hold up a training for minutes; an answer takes far less than this
IMPATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
UPLOAD_TIMEOUT = "60"  # the server answers when it has stored the file
REFUSED_LOGIN = re.compile("password authentication failed|does not exist|no pg_hba|Access denied|Unknown database")


class TrackingError(UserError, ValueError):
    """MLflow cannot be used as the settings say: a mistyped address, a deleted experiment, a refused login."""


class Lines:
    """Appends lines of JSON to a journal. Nothing here raises on a full disk: :attr:`problem` says what is wrong, and
    what could not be written is tried again with the next line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: OSError | None = None
        self._unwritten: list[str] = []

    def write(self, line: Mapping[str, Any]) -> None:
        # a line starts with the line end: what a full disk cut off does not spoil the line after it
        self._unwritten.append("\n" + json.dumps(line))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / JOURNAL).open("ab") as file:
                file.write("".join(self._unwritten).encode())
        except OSError as error:
            self.problem = error
        else:
            self._unwritten.clear()
            self.problem = None

    def sent(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Note that entries were sent."""
        self.write({"sent": [entry["n"] for entry in entries]})

    def is_run(self, run_id: str) -> None:
        """Note which MLflow run this is."""
        self.write({"run_id": run_id})


class Journal(Lines):
    """The journal of a run that is going on; locked as long as its process lives.

    Attributes:
        unsent: entries that are still to be sent.
    """

    def __init__(self, output_dir: str | Path, uid: str) -> None:
        super().__init__(Path(output_dir) / PENDING / uid)
        self.uid = uid
        self.unsent: list[dict[str, Any]] = []
        self._count = 0
        self._lock = FileLock(self.folder / "lock", thread_local=False)
        with suppress(OSError, Timeout):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)

    def add(self, op: str, **content: Any) -> dict[str, Any]:
        """Write an entry that is to be sent."""
        entry = {"n": self._count, "op": op, "time": int(time.time() * 1000), **content}
        self._count += 1
        self.unsent.append(entry)
        self.write(entry)
        return entry

    def sent(self, entries: Sequence[Mapping[str, Any]]) -> None:
        super().sent(entries)
        numbers = {entry["n"] for entry in entries}
        self.unsent = [entry for entry in self.unsent if entry["n"] not in numbers]

    def keep_file(self, entry: dict[str, Any]) -> None:
        """Copy the file of an entry into the journal: the original may be gone when it is sent."""
        copy = self.folder / f"{entry['n']}" / Path(entry["source"]).name
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry["source"], copy)
        except OSError as error:
            self.problem = error
            with suppress(OSError):
                copy.unlink()
        else:
            entry["copied"] = True
            self.write({"copied": entry["n"]})

    def close(self) -> None:
        """Let go of the journal; remove it when everything was sent."""
        if not self.unsent:
            remove(self.folder)
        with suppress(OSError):
            self._lock.release()


def remove(folder: Path) -> None:
    """Remove a journal's folder, and the folder of journals when it was the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


@dataclass
class Written:
    """A journal as read back."""

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    sent: set[int] = field(default_factory=set)
    run_id: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Written:
        """Lines that are no JSON, cut off by a kill or a full disk, are left out."""
        journal, copied = cls(folder), set()
        for text in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if "op" in line:
                journal.entries.append(line)
            elif "sent" in line:
                journal.sent.update(line["sent"])
            elif "copied" in line:
                copied.add(line["copied"])
            else:
                journal.run_id = line["run_id"]
                if line.get("anew"):
                    journal.sent.clear()
        for entry in journal.entries:
            if entry["n"] in copied:
                entry["copied"] = True
        return journal


def _is_no_retry(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Retrying (")


@contextmanager
def impatient(**settings: str) -> Iterator[None]:
    """MLflow's HTTP client gives up in seconds, and without a log line a retry: the caller says what is wrong.

    What the user set by environment variable stays.
    """
    retries = logging.getLogger("urllib3.connectionpool")
    nested = _is_no_retry in retries.filters
    retries.addFilter(_is_no_retry)
    ours = {name: value for name, value in {**IMPATIENCE, **settings}.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        if not nested:
            retries.removeFilter(_is_no_retry)


def is_mistake(error: BaseException) -> bool:
    """Whether the settings are at fault, and not a server that is away or a disk that is full."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() not in (408, 429)
    return isinstance(error, (ValueError, ImportError, PermissionError, FileNotFoundError, NotADirectoryError))


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """MLflow's client of a store that answers, and the id of an experiment, which is made when it does not exist.

    Raises:
        TrackingError: the settings are at fault.
        Exception: the store does not answer.
    """
    import mlflow

    try:
        with impatient(), _first_access(uri):
            _probe(uri)
            client = mlflow.MlflowClient(tracking_uri=uri)
            return client, _experiment_id(client, experiment)
    except TrackingError:
        raise
    except Exception as error:
        if is_mistake(error):
            raise TrackingError(f"MLflow at {without_login(uri)}: {without_login(str(error))}") from error
        raise


def _probe(uri: str) -> None:
    """One attempt on a database: MLflow itself makes ten, which take two minutes."""
    scheme = re.split(r"[+:]", uri)[0]
    if uri.startswith("sqlite:///"):
        try:
            sqlite3.connect(_sqlite_file(uri), timeout=20).execute("pragma schema_version").connection.close()
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
        try:
            engine.connect().close()
        except sqlalchemy.exc.OperationalError as error:
            if REFUSED_LOGIN.search(str(error)):
                raise TrackingError(str(error.orig).strip()) from error
            raise


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?")[0])


@contextmanager
def _first_access(uri: str) -> Iterator[None]:
    """One process at a time: two that create the tables of the same SQLite file at once ruin it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = _sqlite_file(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def absolute(uri: str) -> str:
    """An address that means the same in another working directory."""
    return f"sqlite:///{_sqlite_file(uri).absolute()}" if uri.startswith("sqlite:///") else uri


def without_login(text: str) -> str:
    """Text with the user and password of every address in it left out, also where they stand in its query."""
    # a password may hold / and @, so up to the last @; what follows a port is a path
    text = re.sub(r"(?<=://)([^/@:\s]+:(?!\d+/)[^\s'\"]*@|[^/@\s]+@)", "", text)
    return re.sub(r"(?<=[?&])(user|username|password|passwd|token)=[^&\s'\"]*", r"\1=", text)


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
    return found.experiment_id


def find_run(client: Any, experiment: str, uid: str) -> str | None:
    """The run of a journal."""
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


def create_run(client: Any, experiment: str, entry: Mapping[str, Any]) -> str:
    """Make the run of a ``create`` entry; nested under its training's run, where that is in the same experiment.

    The run of an interrupted training is opened again, where there is one.
    """
    tags = dict(entry["tags"])
    interrupted = entry.get("interrupted")
    if interrupted:
        run = living_run(client, interrupted["run_id"])
        run_id = run.info.run_id if run else find_run(client, experiment, interrupted["journal"])
        if run_id:
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, MARK, tags[MARK])
            return run_id
    training = entry.get("training")
    if training:
        parent = living_run(client, training["run_id"])
        run_id = parent.info.run_id if parent else find_run(client, experiment, training["journal"])
        if run_id:
            tags["fairlung.training_run_id"] = run_id
            if parent is None or parent.info.experiment_id == experiment:
                tags["mlflow.parentRunId"] = run_id
    run = client.create_run(experiment, start_time=entry["time"], run_name=entry["name"], tags=tags)
    return run.info.run_id


def send(client: Any, run_id: str, entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Send one entry, or several of metrics, to a run.

    Raises:
        FileNotFoundError: the file of an entry is gone, or is not the one it was.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    entry = entries[0]
    op = entry["op"]
    if op == "metrics":
        metrics = [Metric(*values) for one in entries for values in one["values"]]
        for i in range(0, len(metrics), BATCH["metrics"]):
            client.log_batch(run_id, metrics=metrics[i : i + BATCH["metrics"]])
    elif op in ("params", "tags"):
        make = Param if op == "params" else RunTag
        values = [make(*item) for item in entry["values"].items()]
        for i in range(0, len(values), BATCH[op]):
            client.log_batch(run_id, **{op: values[i : i + BATCH[op]]})
    elif op == "dataset":
        context = [InputTag("mlflow.data.context", entry["context"])]
        client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**entry["dataset"]), tags=context)])
    elif op == "text":
        client.log_text(run_id, entry["text"], entry["name"])
    elif op == "file":
        _send_file(client, run_id, entry, folder)
    elif op == "end":
        client.set_terminated(run_id, entry["status"], entry["time"])
    else:
        raise ValueError(f"the journal holds an unknown entry {op!r}")


def stamp(path: Path) -> dict[str, int]:
    """By which a file is known to be unchanged."""
    info = path.stat()
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns}


def _send_file(client: Any, run_id: str, entry: Mapping[str, Any], folder: Path) -> None:
    path = Path(entry["source"])
    if entry.get("copied"):
        path = folder / str(entry["n"]) / path.name
    elif not path.is_file() or stamp(path) != {name: entry[name] for name in ("size", "mtime_ns")}:
        raise FileNotFoundError(f"{path} is gone or has changed")
    with impatient(MLFLOW_HTTP_REQUEST_TIMEOUT=UPLOAD_TIMEOUT):
        client.log_artifact(run_id, str(path), entry["folder"])


def batches(entries: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Entries as they are sent: all metrics together, the rest one by one, the end last."""
    listed = list(entries)
    metrics = [entry for entry in listed if entry["op"] == "metrics"]
    yield from ([entry] for entry in listed if entry["op"] not in ("create", "metrics", "end"))
    for i in range(0, len(metrics), 100):
        yield metrics[i : i + 100]
    yield from ([entry] for entry in listed if entry["op"] == "end")


def is_refusal(client: Any, run_id: str, error: BaseException) -> bool:
    """Whether MLflow takes entries of this run but not this one; sending it again would not help."""
    if isinstance(error, FileNotFoundError):
        return True
    if getattr(error, "error_code", "") not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
        return False
    return living_run(client, run_id) is not None


def note_run_id(output_dir: str | Path, uid: str, run_id: str) -> None:
    """Tell the folder's record of its training which run that is."""
    record = Path(output_dir, RECORD)
    with suppress(OSError, ValueError):
        content = json.loads(record.read_text())
        if content.get("journal") == uid:
            record.write_text(json.dumps(content | {"run_id": run_id}, indent=2))


@dataclass(frozen=True)
class Synced:
    """What became of a journal: ``sent`` entries went to the run; 0 and no ``run_id``: its training still runs."""

    name: str
    run_id: str | None
    status: str = ""
    sent: int = 0
    refused: tuple[str, ...] = ()


def sync(output_dir: str | Path, tracking_uri: str | None = None) -> list[Synced]:
    """Send what trainings and evaluations of a folder could not send, into their runs or, where none is, into new ones.

    A run whose process died before it could say how it ended becomes FAILED.

    Args:
        output_dir: the job's output folder.
        tracking_uri: where to; None takes the address that the run was meant for.

    Returns:
        one for each journal, the oldest first; [] when nothing is left to send.

    Raises:
        TrackingError: MLflow does not answer, or not as it should; what is left can be sent again.
    """
    folders = [path.parent for path in Path(output_dir).glob(f"{PENDING}/*/{JOURNAL}")]
    journals = sorted((Written.read(folder) for folder in folders), key=_begin)
    return [_sync_one(Path(output_dir), journal, tracking_uri) for journal in journals if journal.entries]


def _begin(journal: Written) -> int:
    return min((entry["time"] for entry in journal.entries if entry["op"] == "create"), default=0)


def _sync_one(output_dir: Path, journal: Written, tracking_uri: str | None) -> Synced:
    create = next((entry for entry in journal.entries if entry["op"] == "create"), None)
    if create is None:
        raise TrackingError(f"{journal.folder}: the beginning of the journal is missing")
    lock = FileLock(journal.folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return Synced(create["name"], None)
    uri = tracking_uri or create["uri"]
    if not uri:
        raise TrackingError("the address had a password, which was not kept; pass it as --tracking-uri")
    try:
        with impatient():
            return _send_rest(output_dir, journal, create, *connect(uri, create["experiment"]))
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {without_login(uri)} did not take it all: {without_login(str(error))}"
        ) from error
    finally:
        lock.release()


def _send_rest(output_dir: Path, journal: Written, create: Mapping[str, Any], client: Any, experiment: str) -> Synced:
    marks = Lines(journal.folder)
    uid = create["tags"][MARK]
    run = living_run(client, journal.run_id)
    run_id = run.info.run_id if run else find_run(client, experiment, uid)
    # marks are about the run they were made for; another one, on another server or after a deletion, gets everything
    same = run_id is not None and run_id == journal.run_id
    pending = [entry for entry in journal.entries if not (same and entry["n"] in journal.sent)]
    if run_id is None:
        run_id = create_run(client, experiment, create)
    if not same:
        marks.write({"run_id": run_id, "anew": True})
    note_run_id(output_dir, uid, run_id)
    end = next((entry for entry in journal.entries if entry["op"] == "end"), None)
    if end is None:
        end = {"n": -1, "op": "end", "status": "FAILED", "time": max(entry["time"] for entry in journal.entries)}
        pending.append(end)
    refused = []
    for batch in batches(pending):
        try:
            send(client, run_id, batch, journal.folder)
        except Exception as error:
            if not is_refusal(client, run_id, error):
                raise
            refused.append(without_login(str(error)))
        marks.sent(batch)
    remove(journal.folder)
    return Synced(create["name"], run_id, end["status"], len(pending), tuple(refused))
