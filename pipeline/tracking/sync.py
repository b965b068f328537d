"""Sends to MLflow what it did not take while it was away."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..common.run_folder import RECORD
from ..common.text import without_login
from .journal import JOURNAL, PENDING, Lines, Written, batches, deliver, refused_tag, remove
from .store import MARK, TrackingError, connect, create_run, find_run, impatient, living_run


def note_run_id(output_dir: str | Path, uid: str, run_id: str) -> None:
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

    A run whose process died before it could say how it ended becomes FAILED. Returns one for each journal, the oldest
    first. Without ``tracking_uri`` they go where the run was meant to go.

    Raises:
        TrackingError: there is no such folder, or MLflow does not answer, or not as it should; what is left can be sent
            again.
    """
    if not Path(output_dir).is_dir():
        raise TrackingError(f"{output_dir}: no such folder")
    written = (Written.read(path.parent) for path in Path(output_dir).glob(f"{PENDING}/*/{JOURNAL}"))
    journals = sorted(written, key=lambda journal: _entry(journal, "create").get("time", 0))
    return [_sync_one(Path(output_dir), journal, tracking_uri) for journal in journals if journal.entries]


def _entry(journal: Written, op: str) -> dict[str, Any]:
    return next((entry for entry in journal.entries if entry["op"] == op), {})


def _sync_one(output_dir: Path, journal: Written, tracking_uri: str | None) -> Synced:
    create = _entry(journal, "create")
    if not create:
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
        text = f"MLflow at {without_login(uri)} did not take it all: {without_login(str(error))}"
        raise TrackingError(text) from error
    finally:
        lock.release()


def _send_rest(output_dir: Path, journal: Written, create: Mapping[str, Any], client: Any, experiment: str) -> Synced:
    marks = Lines(journal.folder)
    uid = create["tags"][MARK]
    run_id = run.info.run_id if (run := living_run(client, journal.run_id)) else find_run(client, experiment, uid)
    # marks are about the run they were made for; another one, on another server or after a deletion, gets everything
    same = run_id is not None and run_id == journal.run_id
    pending = [entry for entry in journal.entries if not (same and entry["n"] in journal.sent)]
    if run_id is None:
        run_id = create_run(client, experiment, create)
    if not same:
        marks.write({"run_id": run_id, "anew": True})
    note_run_id(output_dir, uid, run_id)
    end = _entry(journal, "end")
    if not end:
        end = {"n": -1, "op": "end", "status": "FAILED", "time": max(entry["time"] for entry in journal.entries)}
        pending.append(end)
    refused: list[str] = []
    for batch in batches(pending):
        if refused and batch[0]["op"] == "end":
            deliver(client, run_id, [{"op": "tags", "values": refused_tag(refused)}], journal.folder)
        refused += [without_login(text) for text in deliver(client, run_id, batch, journal.folder)]
        marks.sent(batch)
    remove(journal.folder)
    return Synced(create["name"], run_id, end["status"], len(pending), tuple(refused))
