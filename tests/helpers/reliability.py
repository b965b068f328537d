"""The table of docs/reliability.md, made by the tests that carry ``@pytest.mark.fault(kind, what, before=, now=)``.

``make reliability`` runs them and writes it: a row a fault, with how many inputs had the right outcome.
"""

from pathlib import Path

import pytest

KINDS = {
    "wrong": "Silent wrong answers",
    "lost": "Nothing lost",
    "leaked": "Nothing leaked",
    "load": "Load and strength",
    "words": "Words",
}
BEGIN = "<!-- from here on written by `make reliability` -->"


class Reliability:
    """Counts what the tests of each fault said, in whichever process they ran, and writes the page at the end."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.rows: dict[tuple[str, str, str, str], list[bool]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (report.when == "call" and not report.skipped) or (report.failed and report.when == "setup"):
            for name, row in report.user_properties:
                if name == "fault":
                    self.rows.setdefault(tuple(row), []).append(report.passed)  # type: ignore[arg-type]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        head = self.page.read_text().partition(BEGIN)[0]
        self.page.write_text(f"{head}{BEGIN}\n{page_of(self.rows)}")
        terminalreporter.write_line(f"{len(self.rows)} faults: {self.page}")


def page_of(rows: dict[tuple[str, str, str, str], list[bool]]) -> str:
    """The tables of all kinds in Markdown, a row a fault."""
    inputs, passed = sum(map(len, rows.values())), sum(map(sum, rows.values()))
    lines = [f"\n{len(rows)} faults, {inputs} inputs, {passed} with the right outcome.\n"]
    for kind in (kind for kind in KINDS if any(of == kind for of, *_ in rows)):
        lines += [f"\n## {KINDS[kind]}\n\n", "| fault | in 0.1 | now | inputs |\n|---|---|---|---|\n"]
        for (of, what, before, now), outcomes in sorted(rows.items()):
            if of == kind:
                lines.append(f"| {what} | {before} | {now} | {sum(outcomes)} of {len(outcomes)} |\n")
    return "".join(lines)


def note_faults(items: list[pytest.Item]) -> None:
    """Attach each test's row to what it reports, since a report alone reaches the process that writes the page."""
    for item in items:
        for mark in item.iter_markers("fault"):
            kind, what = mark.args
            if kind not in KINDS:
                raise pytest.UsageError(f"{item.nodeid}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
            item.user_properties.append(("fault", [kind, what, mark.kwargs["before"], mark.kwargs["now"]]))
