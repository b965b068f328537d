"""What ``fairlung check`` shows on the console."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..common.errors import EXIT_SOME_FAILED
from .console import console, drawn, say

if TYPE_CHECKING:
    from ..reports.intake_page import IntakeCollector

COLOURS = {"refused": "red", "with warnings": "yellow", "fine": "green", "skipped": "dim"}


def show_check(records: Sequence[Mapping[str, Any]], fine: int = 30) -> None:
    """What the intake says of scans: refused ones first, then those with warnings; up to ``fine`` of the others."""
    from ..data.intake_records import GROUPS, group_counts, group_of, warning_counts
    from ..reports.intake_page import scans_table

    counts = group_counts(records)
    # all doubtful scans are shown, and some of the others
    limits = {"fine": fine, "skipped": fine}
    members = {group: [record for record in records if group_of(record) == group] for group in GROUPS}
    shown = [record for group, found in members.items() for record in found[: limits.get(group)]]
    table = replace(scans_table(shown), caption=f"{len(records)} scans")
    console.print(drawn(table, ("kind", "voxel (mm)"), COLOURS))
    left = [f"{counts[group] - fine} {group}" for group in limits if counts[group] > fine]
    if left:
        say(f"not shown: {', '.join(left)}")
    if codes := warning_counts(records):
        say(f"Warnings: {', '.join(f'{count} {code}' for code, count in codes.items())}.")
    say(f"{len(records)} scans: {', '.join(f'{count} {GROUPS[group].lower()}' for group, count in counts.items())}.")


def report_intake(collector: IntakeCollector) -> None:
    """Show the table on the console; exit with :data:`EXIT_SOME_FAILED` when scans are refused."""
    from ..reports.intake_page import PAGE, TABLE

    show_check(collector.records)
    say(f"wrote {collector.output_dir / PAGE} and {TABLE}")
    if any(record["status"] == "refused" for record in collector.records):
        sys.exit(EXIT_SOME_FAILED)
