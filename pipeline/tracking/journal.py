"""What a run says to MLflow, written down before it is sent: what a server did not take can be sent later.

A journal is a folder ``<output_dir>/mlflow_pending/<id>`` with ``journal.jsonl`` and copies of files. Its lines are
entries (create, params, metrics, dataset, text, file, tags, end) numbered by ``n``, and marks: which entries were sent,
where files were copied, which MLflow run it is. An entry that is sent twice changes nothing in MLflow, and the run has
the journal's id as a tag, so a lost mark makes no duplicate. The folder is removed once all is sent. It holds what
MLflow would have got: no password, and of the patients no more than the artifacts show.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .store import UPLOAD_TIMEOUT, bounded, impatient, living_run, patience

PENDING = "mlflow_pending"  # folder in an output_dir
JOURNAL = "journal.jsonl"
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits on one request
ARTIFACTS = ("file", "text")
UPLOAD_RATE = 1e6  # bytes a second, at least


class GoneFileError(FileNotFoundError):
    """A file that was to be sent is gone, or is another one by now."""


class Lines:
    """Appends lines of JSON to a journal. A full disk sets :attr:`problem`, and the next line tries again."""

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
        self.write({"sent": [entry["n"] for entry in entries]})


class Journal(Lines):
    """The journal of a run that is going on; locked as long as its process lives."""

    def __init__(self, output_dir: str | Path, uid: str) -> None:
        super().__init__(Path(output_dir) / PENDING / uid)
        self.uid = uid
        self.unsent: list[dict[str, Any]] = []  # entries
        self.refused: list[str] = []  # what MLflow does not take of them, and why
        self._count = 0
        self._lock = FileLock(self.folder / "lock", thread_local=False)
        with suppress(OSError, Timeout):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)

    def add(self, op: str, **content: Any) -> dict[str, Any]:
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

    def discard(self) -> None:
        """Let go of the journal and remove it: its run was never to be."""
        self.unsent = []
        self.close()

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
        for entry in (entry for entry in journal.entries if entry["n"] in copied):
            entry["copied"] = True
        return journal


def deliver(client: Any, run_id: str, entries: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Send one entry, or several of metrics, in bounded time; what MLflow refuses of them, and why.

    Where it refuses some of many values, the others are sent. Any error means that it does not answer.
    """
    upload = {"MLFLOW_HTTP_REQUEST_TIMEOUT": UPLOAD_TIMEOUT} if entries[0]["op"] in ARTIFACTS else {}
    with impatient(**upload):
        try:
            seconds = patience() + sum(entry.get("size", 0) for entry in entries) / UPLOAD_RATE
            bounded(seconds, _send, client, run_id, entries, folder)
        except Exception as error:
            if not is_refusal(client, run_id, error):
                raise
            halves = _halves(entries)
            if not halves:
                return [f"{subject(entries)}: {error}"]
            return [text for half in halves for text in deliver(client, run_id, half, folder)]
    return []


def subject(entries: Sequence[Mapping[str, Any]]) -> str:
    """What entries are about, in a word: a file's name, the name of one value, else the kind."""
    entry = entries[0]
    if entry["op"] in ARTIFACTS:
        return str(entry.get("name") or Path(entry["source"]).name)
    named = [row[0] for row in entry["values"]] if entry["op"] == "metrics" else list(entry.get("values", ()))
    return str(named[0]) if len(entries) == len(named) == 1 else str(entry["op"])


def counted(names: Sequence[str]) -> str:
    """How many there are, and which; "" of none."""
    return f"{len(names)}: {', '.join(names)}" if names else ""


def refused_tag(refused: Iterable[str]) -> dict[str, str]:
    """The tag by which a run says what it lacks as MLflow refused it; {} where it refused nothing."""
    names = list(dict.fromkeys(text.partition(": ")[0] for text in refused))
    return {"fairlung.refused": counted(names)[:5000]} if names else {}


def _halves(entries: Sequence[Mapping[str, Any]]) -> list[Sequence[Mapping[str, Any]]]:
    """Entries of many values in two parts; none where there is one value."""
    if len(entries) > 1:
        return [entries[: len(entries) // 2], entries[len(entries) // 2 :]]
    entry = entries[0]
    if entry["op"] not in BATCH or len(entry["values"]) < 2:
        return []
    make = list if entry["op"] == "metrics" else dict
    values = list(entry["values"] if entry["op"] == "metrics" else entry["values"].items())
    middle = len(values) // 2
    return [[{**entry, "values": make(part)}] for part in (values[:middle], values[middle:])]


def _send(client: Any, run_id: str, entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """GoneFileError for a file that is gone or has changed."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    entry = entries[0]
    op = entry["op"]
    if op in BATCH:
        make = {"metrics": Metric, "params": Param, "tags": RunTag}[op]
        rows = [row for one in entries for row in (one["values"] if op == "metrics" else one["values"].items())]
        values = [make(*row) for row in rows]
        for i in range(0, len(values), BATCH[op]):
            client.log_batch(run_id, **{op: values[i : i + BATCH[op]]})
    elif op == "dataset":
        context = [InputTag("mlflow.data.context", entry["context"])]
        client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**entry["dataset"]), tags=context)])
    elif op == "text":
        client.log_text(run_id, entry["text"], entry["name"])
    elif op == "file":
        path = Path(entry["source"])
        if entry.get("copied"):
            path = folder / str(entry["n"]) / path.name
        elif not path.is_file() or stamp(path) != {name: entry[name] for name in ("size", "mtime_ns")}:
            raise GoneFileError(f"{path} is gone or has changed")
        client.log_artifact(run_id, str(path), entry["folder"])
    elif op == "end":
        client.set_terminated(run_id, entry["status"], entry["time"])
    else:
        raise ValueError(f"the journal holds an unknown entry {op!r}")


def stamp(path: Path) -> dict[str, int]:
    """By which a file is known to be unchanged."""
    info = path.stat()
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns}


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
    if isinstance(error, GoneFileError):
        return True
    refused = getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    return refused and bounded(patience(), living_run, client, run_id) is not None
