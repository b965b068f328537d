"""What ``fairlung check`` shows on the console."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..common.errors import EXIT_SOME_FAILED
from ..reports.intake_page import PAGE, TABLE, IntakeCollector
from .console import console, printable


def show_check(records: Sequence[Mapping[str, Any]], fine: int = 30) -> None:
    """What the intake says of scans: refused ones first, then those with warnings; up to ``fine`` of the others."""
    from ..data.intake_records import GROUPS, group_counts, group_of, warning_counts

    colours = {"refused": "red", "warnings": "yellow", "fine": "green", "skipped": "dim"}
    counts = group_counts(records)
    table = Table(title=f"{len(records)} scans")
    table.add_column("scan", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("slices", justify="right", no_wrap=True)
    table.add_column("said", overflow="fold")
    for group, colour in colours.items():
        members = [record for record in records if group_of(record) == group]
        for record in members if group in ("refused", "warnings") else members[:fine]:
            table.add_row(
                escape(printable(record["scan"])),
                f"[{colour}]{group}[/]",
                f"{record['slices_used']}/{record['slices_found']}" if record["slices_found"] else "-",
                escape(printable("\n".join(filter(None, [record["reason"], *record["warnings"]])))) or "-",
            )
    console.print(table)
    left = {group: counts[group] - fine for group in ("fine", "skipped") if counts[group] > fine}
    if left:
        console.print(f"not shown: {', '.join(f'{n} {group}' for group, n in left.items())}", highlight=False)
    if codes := warning_counts(records):
        told = ", ".join(f"{count} {code}" for code, count in codes.items())
        console.print(escape(f"Warnings: {told}."), highlight=False, soft_wrap=True)
    told = ", ".join(f"{count} {GROUPS[group].lower()}" for group, count in counts.items())
    console.print(f"{len(records)} scans: {told}.", highlight=False, soft_wrap=True)


def report_intake(collector: IntakeCollector) -> None:
    """Show the table on the console; exit with :data:`EXIT_SOME_FAILED` when scans are refused."""
    from .console import console

    show_check(collector.records)
    console.print(f"wrote {collector.output_dir / PAGE} and {TABLE}", highlight=False, soft_wrap=True, markup=False)
    if any(record["status"] == "refused" for record in collector.records):
        sys.exit(EXIT_SOME_FAILED)
