"""How far a study is, as a table that is kept up to date on a terminal, and as a line for each change elsewhere."""

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.live import Live
from rich.table import Table as RichTable

from ..common import run_folder
from ..reports.document import Table
from ..studies.folder import StudyFolder
from ..studies.record import PlannedRun
from .console import console, drawn, say

SHOWN = 30  # runs in the table; of a large study those in progress come first
COLUMNS = ("configuration", "seed", "fold", "status", "epoch", "val P", "minutes")
COLOURS = {"finished": "green", "failed": "red", "running": "yellow", "pending": "dim"}


@contextmanager
def show_progress(folder: StudyFolder) -> Iterator[tuple[Callable[[Path], None], Callable[[Path, int, str], None]]]:
    """What to call with a run.json when its run begins, and with its exit code when it ends."""
    began: dict[str, float] = {}
    took: dict[str, float] = {}

    def tell(run_id: str) -> None:
        if not console.is_terminal:
            status, counts = folder.status(run_id), folder.counts()
            reason = f": {folder.reason(run_id)}" if status == "failed" else ""
            done = f"{counts['finished']} of {len(folder.planned)} finished"
            say(f"{status} {run_id}{reason} ({done})")

    def begins(run_file: Path) -> None:
        run_id = run_file.parent.name
        began[run_id] = time.monotonic()
        folder.begins(run_id)
        tell(run_id)

    def ends(run_file: Path, code: int, reason: str) -> None:
        run_id = run_file.parent.name
        took[run_id] = time.monotonic() - began[run_id]
        folder.ends(run_id, code, reason)
        tell(run_id)

    if not console.is_terminal:
        yield begins, ends
        return
    with Live(get_renderable=lambda: _table(folder, began, took), console=console, refresh_per_second=1):
        yield begins, ends


def _table(folder: StudyFolder, began: dict[str, float], took: dict[str, float]) -> RichTable:
    rows = []
    for run in _shown(folder):
        epoch, score = _progress(folder.run_file(run.id).with_name(run_folder.HISTORY))
        seconds = took.get(run.id, time.monotonic() - began[run.id] if run.id in began else None)
        fold = "" if run.fold is None else f"{run.repeat}.{run.fold}"
        status = f"{folder.status(run.id)} {folder.reason(run.id)[:60]}".strip()
        minutes = "" if seconds is None else f"{seconds / 60:.1f}"
        rows.append((run.label, str(run.seed), fold, status, epoch, score, minutes))
    title = ", ".join(f"{n} {status}" for status, n in folder.counts().items() if n)
    return drawn(Table(f"{folder.study.name}: {title}", COLUMNS, tuple(rows)), colours=COLOURS)


def _shown(folder: StudyFolder) -> list[PlannedRun]:
    runs = list(folder.planned.values())
    rank = {"running": 0, "failed": 1, "finished": 2, "pending": 3}
    chosen = sorted(runs, key=lambda run: rank[folder.status(run.id)])[:SHOWN]
    return [run for run in runs if run in chosen]


def _progress(history: Path) -> tuple[str, str]:
    """The last epoch of a history.csv, and the best P so far."""
    try:
        with history.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        scores = [float(row["value"]) for row in rows if row["metric"] == "val_score"]
        return rows[-1]["epoch"], f"{max(scores):.3f}" if scores else ""
    except (OSError, ValueError, KeyError, IndexError):
        return "", ""
