"""How far a study is: a line a change, or a table on a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fairlung.pipeline.cli import console, study_progress


class Folder:
    """A study of two runs, of which the second one fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study = SimpleNamespace(name="[red]")
        self.planned = {name: SimpleNamespace(id=name, label="CE [x]", seed=1, repeat=0, fold=2) for name in "ab"}
        self.statuses = dict.fromkeys("ab", "pending")

    def run_file(self, run_id: str) -> Path:
        return self.path / run_id / "run.json"

    def begins(self, run_id: str) -> None:
        self.statuses[run_id] = "running"

    def ends(self, run_id: str, code: int, reason: str) -> None:
        self.statuses[run_id] = "failed" if code else "finished"

    def status(self, run_id: str) -> str:
        return self.statuses[run_id]

    def reason(self, run_id: str) -> str:
        return "out of [memory]" if self.statuses[run_id] == "failed" else ""

    def counts(self) -> dict[str, int]:
        return {status: list(self.statuses.values()).count(status) for status in ("finished", "failed", "pending")}


@pytest.mark.parametrize("terminal", [False, True])
def test_every_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    out = io.StringIO()
    for module in (console, study_progress):
        shown = Console(file=out, width=120, color_system=None, force_terminal=terminal, legacy_windows=False)
        monkeypatch.setattr(module, "console", shown)
    folder: Any = Folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "history.csv").write_text("epoch,metric,value\n1,val_score,0.5\n2,val_score,0.4\n")
    with study_progress.show_progress(folder) as (begins, ends):
        for run_id, code in (("a", 0), ("b", 1)):
            begins(folder.run_file(run_id))
            ends(folder.run_file(run_id), code, "")
    text = out.getvalue()
    if not terminal:
        assert text.splitlines() == [
            "running a (0 of 2 finished)",
            "finished a (1 of 2 finished)",
            "running b (1 of 2 finished)",
            "failed b: out of [memory] (1 of 2 finished)",
        ]
        return
    assert "[red]: 1 finished, 1 failed" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "CE [x]" in line]
    assert ["CE [x]", "1", "0.2", "finished", "2", "0.500", "0.0"] in rows
    assert ["CE [x]", "1", "0.2", "failed out of [memory]", "", "", "0.0"] in rows
