"""Results of the commands as tables on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..data.archives import Intake
    from ..data.cohort import Cohort
    from ..evaluation.wording import Verdict
    from ..reports import document

console = Console()

WORDS = ("class", "group", "status", "system")  # columns that hold words, beside the first one
WHOLE = 30  # characters of a word that is not broken
SIGNS = {"finding": "[red]finding[/]", "inconclusive": "[yellow]inconclusive[/]", "no-statement": "no statement"}


def _show_verdicts(verdicts: list[dict[str, str]]) -> None:
    for verdict in verdicts:
        sign = SIGNS.get(verdict["level"], verdict["level"])
        console.print(f"{sign}: {escape(verdict['text'])}", highlight=False, soft_wrap=True)
    console.print()


def _percent(result: dict[str, Any]) -> str:
    return f"{100 * result['settings']['confidence']:g} %"


def _scans(result: dict[str, Any]) -> str:
    return f"{result['n']} {'SYNTHETIC scans (phantoms)' if result['synthetic'] else 'scans'}"


def _span(estimate: dict[str, float] | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    return "{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})".format(**estimate, sign=sign)


def say(text: str, sign: str = "") -> None:
    """A line of plain text; a ``sign`` before it is what a reader must not miss."""
    console.print(f"[yellow]{sign}[/] {escape(text)}" if sign else escape(text), highlight=False, soft_wrap=True)


def show_intake(intake: Intake) -> None:
    """What was unpacked, and what was left."""
    from rich.filesize import decimal

    for done in intake.unpacked:
        how = "unpacked before" if done.reused else "unpacked"
        say(f"{how}: {done.archive.name}, {done.files:,} files, {decimal(done.bytes)}, to {done.folder}")
        for name in done.left_packed:
            say(f"{done.archive.name}: {name}: an archive in an archive in an archive", "left packed")
    for archive in intake.left_packed:
        say(f"{archive.name}: an archive beside scans that are unpacked; --unpack-to takes it too", "left packed")


def show_audit(result: dict[str, Any]) -> None:
    _show_verdicts(result["verdicts"])
    overall, groups = result["overall"], result["group_names"]
    table = Table(title=f"{_scans(result)}, {_percent(result)} intervals")
    headings = {"score": "P", "gap": f"gap ({' - '.join(groups)})", "abs_gap": "|gap|", "f1_macro": "pooled macro F1"}
    shown = {name: heading for name, heading in headings.items() if name in overall}
    for heading in shown.values():
        table.add_column(heading, justify="right")
    table.add_row(*(_span(overall[name], "+" if name == "gap" else "") for name in shown))
    console.print(table)

    table = Table(title="Groups")
    table.add_column("group", no_wrap=True)
    table.add_column("scans", justify="right")
    headings = {"f1": "macro F1", "accuracy": "accuracy", "auc": "AUC", "ece": "ECE", "brier": "Brier"}
    shown = {name: heading for name, heading in headings.items() if any(group.get(name) for group in result["groups"])}
    for heading in shown.values():
        table.add_column(heading, justify="right")
    for group in result["groups"]:
        table.add_row(escape(group["group"]), str(group["n"]), *(_span(group.get(name)) for name in shown))
    console.print(table)

    table = Table(title="Cells")
    for heading in ("class", "group", "scans", "precision", "recall", "F1"):
        name = heading in ("class", "group")
        table.add_column(heading, justify="left" if name else "right", no_wrap=name)
    for cell in sorted(result["cells"], key=lambda cell: result["class_names"].index(cell["class"])):
        numbers = (_span(cell[name]) for name in ("precision", "recall", "f1"))
        table.add_row(escape(cell["class"]), escape(cell["group"]), str(cell["n"]), *numbers)
    console.print(table)


def show_comparison(result: dict[str, Any]) -> None:
    _show_verdicts(result["verdicts"])
    groups = result["group_names"]
    headings = {"score": "P", "gap": f"gap ({' - '.join(groups)})", "abs_gap": "|gap|"}
    headings |= {f"f1_{group}": f"F1 {group}" for group in groups}
    headings |= {"worst_cell_f1": "worst cell F1", "f1_macro": "pooled macro F1"}
    shown = {name: heading for name, heading in headings.items() if name in result["systems"][0]["values"]}
    table = Table(title=f"{_scans(result)}, mean (standard deviation over runs)")
    for heading in ("system", "runs", *shown.values()):
        table.add_column(escape(heading), justify="left" if heading == "system" else "right")
    for system in result["systems"]:
        values, spread = system["values"], system["sd"]
        numbers = [
            f"{values[name]:{'+' if name == 'gap' else ''}.3f}" + (f" ({spread[name]:.3f})" if spread else "")
            for name in shown
        ]
        table.add_row(escape(system["name"]), str(len(system["runs"])), *numbers)
    console.print(table)

    table = Table(title=f"Difference from {escape(result['reference'])}, {_percent(result)} intervals")
    table.add_column("")
    for comparison in result["comparisons"]:
        table.add_column(escape(comparison["system"]), justify="right")
    for name, heading in shown.items():
        table.add_row(escape(heading), *(_span(found["differences"][name], "+") for found in result["comparisons"]))
    for name, text in (("score", "higher P"), ("abs_gap", "smaller |gap|")):
        shares = (found["probability_better"][name] for found in result["comparisons"])
        table.add_row(f"{text}, share of resamples", *(f"{share:.3f}" for share in shares))
    for name, text in (("score", "P"), ("abs_gap", "|gap|")):
        tests = [found["tests"][name] for found in result["comparisons"]]
        table.add_row(f"p of {text} (after Holm)", *(f"{test['p_value']:.3g} ({test['p_holm']:.3g})" for test in tests))
    console.print(table)


def show_before_after(result: dict[str, Any]) -> None:
    table = Table(title=f"Before and after, {_scans(result)}")
    for heading in ("", "before", "after", f"change ({_percent(result)} interval)"):
        table.add_column(heading, justify="right" if heading else "left")
    headings = {"score": "P", "gap": f"gap ({' - '.join(result['group_names'])})", "abs_gap": "|gap|", "f1": "F1"}
    headings |= {"nll": "NLL", "brier": "Brier", "ece": "ECE"}

    def add(name: str, number: dict[str, Any], group: str = "") -> None:
        sign = "+" if name == "gap" else ""
        values = (f"{number[when]:{sign}.3f}" for when in ("before", "after"))
        table.add_row(escape(f"{headings[name]} {group}".strip()), *values, _span(number["change"], "+"))

    for name in headings:
        if name in result["overall"]:
            add(name, result["overall"][name])
        for group in result["groups"]:
            if name in group:
                add(name, group[name], group["group"])
    console.print(table)
    parts = [f"{group['changed']} of {group['n']} {group['group']}" for group in result["groups"]]
    console.print(escape(f"Predictions that changed: {', '.join(parts)}."), highlight=False, soft_wrap=True)
    console.print("[yellow]cost[/]")
    for sentence in result["cost"]:
        console.print(escape(f"  {sentence}"), highlight=False, soft_wrap=True)
    console.print()


def show_evaluation(result: dict[str, Any]) -> None:
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    kind = ", SYNTHETIC scans (phantoms)" if result["synthetic"] else ""
    overall = Table(title=f"{result['split']} split, {result['checkpoint']}{kind}")
    headings = {f"f1_{group}": f"F1 {group}" for group in groups}
    headings |= {"score": "P", "gap": f"gap ({' - '.join(groups)})", "abs_gap": "|gap|", "f1_macro": "pooled macro F1"}
    shown = {name: heading for name, heading in headings.items() if name in scores}
    for heading in shown.values():
        overall.add_column(heading, justify="right")
    overall.add_row(*(f"{scores[name]:+.4f}" if name == "gap" else f"{scores[name]:.4f}" for name in shown))
    console.print(overall)

    cells = Table(title="F1 (scans) of each class and group")
    cells.add_column("class")
    for group in groups:
        cells.add_column(group, justify="right")
    for c, name in enumerate(classes):
        supports = [sum(result["confusion"][g][c]) for g in range(len(groups))]
        cells.add_row(name, *(f"{scores[f'f1_{g}_{name}']:.4f} ({n})" for g, n in zip(groups, supports, strict=True)))
    console.print(cells)
    chance = 1 / len(classes)
    above = scores["score"] - chance
    console.print(f"Guessing evenly gives P of about {chance:.2f}; this is {above:+.2f} from it.\n", highlight=False)


def show_study(found: document.Table, verdicts: Sequence[Verdict]) -> None:
    """Table 1 of a study under its verdicts; what needs a wide page is in the files alone."""
    _show_verdicts([asdict(verdict) for verdict in verdicts])
    console.print(drawn(found, [h for h in found.columns if h.startswith(("quoted", "interval over"))]))


def drawn(table: document.Table, left_out: Sequence[str] = (), colours: Mapping[str, str] | None = None) -> Table:
    """A report's table for the console: names and sentences on the left, numbers on the right.

    Args:
        table: a row that is bold in every column closes a part of the table.
        left_out: columns that are not shown.
        colours: style of the values that begin with a word, in the column ``status``.
    """
    out = Table(title=escape(printable(table.caption)))
    shown = [index for index, heading in enumerate(table.columns) if heading not in left_out]
    sentences = len(table.columns) - 1 if table.ends_in_text else None
    for index in shown:
        heading = table.columns[index]
        word = index == 0 or heading in WORDS
        whole = word and max((len(row[index]) for row in table.rows), default=0) <= WHOLE
        justify: Literal["left", "right"] = "left" if word or index == sentences else "right"
        out.add_column(escape(printable(heading)), justify=justify, no_wrap=whole, overflow="fold")
    for number, row in enumerate(table.rows):
        bold = ["bold" if (number, index) in table.strong else "" for index in range(len(row))]
        cells = []
        for index in shown:
            text = printable(row[index])
            styles = (style for word, style in (colours or {}).items() if text.startswith(word))
            cells.append(Text(text, next(styles, "") if table.columns[index] == "status" else bold[index]))
        out.add_row(*cells, end_section=all(bold))
    return out


def printable(text: str) -> str:
    """Without what a terminal would obey, and what has no letter: a file name may hold anything."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text)


def cells_table(cohort: Cohort) -> document.Table:
    """The scans of each split, class and group, with totals."""
    from ..data.groups import JOIN
    from ..reports.document import Table

    cells = cohort.cells()
    groups = list(dict.fromkeys(cells["group"]))
    rows, strong = [], set()
    for split in cohort.splits():
        counts = cells[cells["split"] == split].pivot(index="label", columns="group", values="n")[groups]
        counts = counts.loc[list(cohort.class_names)].assign(total=lambda found: found.sum(axis=1))
        for label, numbers in counts.iterrows():
            rows.append((split if label == cohort.class_names[0] else "", str(label), *map(str, numbers)))
        rows.append(("", "total", *map(str, counts.sum())))
        strong |= {(len(rows) - 1, column) for column in range(len(groups) + 3)}
    title = f"{len(cohort.table)} scans by split, class and {JOIN.join(cohort.group_by)}"
    return Table(title, ("split", "class", *groups, "total"), tuple(rows), frozenset(strong))


def stop(error: Exception) -> NoReturn:
    """End the command with an error in one line."""
    Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
