"""What ``fairlung check`` shows on the console."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
from intake_examples import RECORDS, record
from rich.console import Console

from fairlung.pipeline.cli import console, data_commands


def shown(records: Sequence[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> str:
    out = io.StringIO()
    for module in (data_commands, console):
        monkeypatch.setattr(module, "console", Console(file=out, width=100, color_system=None))
    data_commands.show_check(records, **settings)
    return out.getvalue()


def test_the_console_shows_the_doubtful_first_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(RECORDS, monkeypatch)
    order = [text.index(f"│ {each} ") for each in ("broken", "doubtful", "folder", "fine", "localizer")]
    assert order == sorted(order)
    for said in ("not a", "DICOM file", "missing_slices: 2 of 80", "16/80"):
        assert said in text
    assert "Warnings: 2 few_slices, 1 missing_slices." in text
    assert text.rstrip().endswith("5 scans: 1 refused, 2 with warnings, 1 fine, 1 skipped.")


def test_the_console_lists_every_doubtful_scan_and_some_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [record(f"f{i:03d}") for i in range(50)] + [record(f"w{i:03d}", warnings=["gap: 9 mm"]) for i in range(50)]
    text = shown(many, monkeypatch, fine=3)
    assert len(re.findall(r"\bw\d{3}\b", text)) == 50
    assert len(re.findall(r"\bf\d{3}\b", text)) == 3
    assert "not shown: 47 fine" in text


def test_a_name_cannot_command_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown([record("[red]x[/] \x1b[2J\u202e caf\udce9", warnings=["[bold]y"])], monkeypatch)
    assert "[red]x[/]" in text and "[bold]y" in text and "caf\\udce9" in text
    assert "\x1b" not in text and "\u202e" not in text
