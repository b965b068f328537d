"""Results of the commands as tables on the console."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..common.errors import in_a_line, shows_whole_stack
from ..common.text import printable
from ..evaluation.wording import (
    ABOUT_NUMBERS,
    NO_NORMAL_CLASS,
    SHARE_HIGHER,
    few_scans,
    number_name,
    percent,
    span_text,
    value_text,
)

if TYPE_CHECKING:
    from ..comparison.records import Comparison
    from ..data.archives import Intake
    from ..data.cohort import Cohort
    from ..evaluation.planning import Design, Plan
    from ..evaluation.records import Audit
    from ..evaluation.wording import Verdict
    from ..postprocessing.before_after import BeforeAfter
    from ..reports import document

console = Console()

WORDS = ("class", "group", "status", "system")  # columns that hold words, beside the first one
WHOLE = 32  # characters of a word that is not broken
SIGNS = {
    "finding": "[red]finding[/]", "warning": "[yellow]warning[/]", "inconclusive": "[yellow]inconclusive[/]",
    "no-statement": "no statement",
}  # fmt: skip


def _show_verdicts(verdicts: Iterable[Verdict]) -> None:
    for verdict in verdicts:
        sign = SIGNS.get(verdict.level, verdict.level)
        console.print(f"{sign}: {plain(verdict.text)}", highlight=False, soft_wrap=True)
    console.print()


def _show_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], names: int = 1, no_wrap: bool = False
) -> None:
    """A table whose first ``names`` columns are names, on one line with ``no_wrap``; the others are numbers."""
    table = Table(title=plain(title))
    for index, heading in enumerate(columns):
        name = index < names
        table.add_column(plain(heading), justify="left" if name else "right", no_wrap=no_wrap and name)
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)


def _scans(result: Audit | Comparison | BeforeAfter) -> str:
    patients = f" of {result.n_patients} patients" if result.n_patients else ""
    return f"{result.n} {'SYNTHETIC scans (phantoms)' if result.synthetic else 'scans'}{patients}"


def say(text: str, sign: str = "") -> None:
    """A line of plain text; a ``sign`` before it is what a reader must not miss."""
    console.print(f"[yellow]{sign}[/] {plain(text)}" if sign else plain(text), highlight=False, soft_wrap=True)


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


def show_audit(result: Audit) -> None:
    _show_verdicts(result.verdicts)
    numbers = result.overall.numbers()
    title = f"{_scans(result)}, {percent(result.settings.confidence)} intervals"
    values = [span_text(estimate, key == "gap") for key, estimate in numbers.items()]
    _show_table(title, [number_name(key, result.group_names) for key in numbers], [values], names=0)
    found = {
        key: [getattr(group, key, None) or getattr(group.calibration, key, None) for group in result.groups]
        for key in ("f1", "accuracy", "auc", "ece", "brier")
    }
    shown = {key: estimates for key, estimates in found.items() if any(estimates)}
    of_groups = zip(*([span_text(one) if one else "-" for one in each] for each in shown.values()), strict=True)
    rows = [[group.group, str(group.n), *texts] for group, texts in zip(result.groups, of_groups, strict=True)]
    _show_table("Groups", ["group", "scans", *map(number_name, shown)], rows, no_wrap=True)
    columns = ["class", "group", "scans", *map(number_name, ("precision", "recall", "f1"))]
    cells = sorted(result.cells, key=lambda cell: result.class_names.index(cell.class_name))
    rows = [[c.class_name, c.group, str(c.n), *map(span_text, (c.precision, c.recall, c.f1))] for c in cells]
    _show_table("Cells", columns, rows, names=2, no_wrap=True)
    if result.clinical and not result.clinical.diagnosis:
        say(f"No underdiagnosis and overdiagnosis: {NO_NORMAL_CLASS}.")


def show_comparison(result: Comparison) -> None:
    _show_verdicts(result.verdicts)
    first, others = result.systems[0], result.comparisons
    groups = [f"f1_{group}" for group in result.group_names]
    order = ("score", "gap", "abs_gap", *groups, "worst_cell_f1", "f1_macro")
    shown = {key: number_name(key, result.group_names) for key in order if key in first.values}
    rows = []
    for system in result.systems:
        sds = {key: f" ({sd:.3f})" for key, sd in (system.sd or {}).items()}
        values = (value_text(system.values[key], key == "gap") + sds.get(key, "") for key in shown)
        rows.append([system.name, str(len(system.runs)), *values])
    title = f"{_scans(result)}, mean (standard deviation over runs)"
    _show_table(title, ["system", "runs", *shown.values()], rows)
    differences = [
        [name, *(span_text(other.differences[key], signed=True) for other in others)]
        for key, name in shown.items()
        if key in others[0].differences
    ]
    shares = ["-" if other.share_higher is None else value_text(other.share_higher) for other in others]
    if any(share != "-" for share in shares):
        differences.append([SHARE_HIGHER, *shares])
    for key in others[0].tests:
        p = (f"{other.tests[key].p_value:.3g} ({other.tests[key].p_holm:.3g})" for other in others)
        differences.append([f"p of {number_name(key)} (after Holm)", *p])
    means = [next((one for one in other.aucs if one.class_name is None), None) for other in others]
    if any(means):
        shown_means = (
            f"{span_text(one.difference, signed=True)}, unadjusted p {one.p_value:.3g}" if one else "-" for one in means
        )
        differences.append([f"{number_name('auc')}, mean over classes", *shown_means])
    title = f"Difference from {result.reference}, {percent(result.settings.confidence)} intervals"
    _show_table(title, ["", *(other.system for other in others)], differences)


def show_plan(result: Plan, design: Design) -> None:
    """The scans and patients of each class and group, after what they are for."""
    from ..data.groups import MIN_CELL

    say(result.words)
    fair = design.gaps(design.answers())[1]
    if abs(fair) >= 0.0005:
        say(f"With this mix a fair model's gap is {value_text(fair, True)}: precision depends on the mix of classes.")
    small = few_scans({f"{cell.class_name}, {cell.group}": cell.scans for cell in result.cells}, MIN_CELL)
    if small:
        say(f"There are {small}: of such a class and group alone an audit makes no statement.", "note:")
    several = any(cell.scans > cell.patients for cell in result.cells)
    texts = [f"{cell.scans:,}" + (f" ({cell.patients:,})" if several else "") for cell in result.cells]
    half = len(design.class_names)  # the cells are in the order of groups, then classes
    rows = zip(design.class_names, texts[:half], texts[half:], strict=True)
    _show_table("Scans (patients)" if several else "Scans", ["class", *design.group_names], rows)


def show_before_after(result: BeforeAfter) -> None:
    rows = []
    of_parts = [("", result.numbers), *((group.group, group.numbers) for group in result.groups)]
    for key in ("score", "gap", "abs_gap", "f1", "nll", "brier", "ece"):
        for part, numbers in of_parts:
            if number := numbers.get(key):
                values = (value_text(value, key == "gap") for value in (number.before, number.after))
                name = f"{number_name(key, result.group_names)} {part}".strip()
                rows.append([name, *values, span_text(number.change, signed=True)])
    columns = ("", "before", "after", f"change ({percent(result.confidence)} interval)")
    _show_table(f"Before and after, {_scans(result)}", columns, rows)
    parts = [f"{group.moved.changed} of {group.n} {group.group}" for group in result.groups]
    say(f"Predictions that changed: {', '.join(parts)}.")
    console.print("[yellow]cost[/]")
    for sentence in result.cost:
        say(f"  {sentence}")
    console.print()


def show_evaluation(result: Mapping[str, Any]) -> None:
    """An evaluation's metrics.json."""
    scores, classes, groups = result["metrics"], result["class_names"], result["group_names"]
    kind = ", SYNTHETIC scans (phantoms)" if result["synthetic"] else ""
    several = isinstance(result["checkpoint"], list)
    judged = f"{len(result['checkpoint'])} checkpoints together" if several else result["checkpoint"]
    keys = (*(f"f1_{group}" for group in groups), "score", "gap", "abs_gap", "f1_macro")
    shown = {number_name(key, groups): f"{scores[key]:{'+' * (key == 'gap')}.4f}" for key in keys if key in scores}
    _show_table(f"{result['split']} split, {judged}{kind}", shown, [shown.values()], names=0)
    cells = [
        [name, *(f"{scores[f'f1_{g}_{name}']:.4f} ({sum(result['confusion'][i][c])})" for i, g in enumerate(groups))]
        for c, name in enumerate(classes)
    ]
    _show_table("F1 (scans) of each class and group", ["class", *groups], cells)
    chance = 1 / len(classes)
    above = scores["score"] - chance
    say(ABOUT_NUMBERS)
    console.print(f"Guessing evenly gives P of about {chance:.2f}; this is {above:+.2f} from it.\n", highlight=False)


def show_study(found: document.Table, verdicts: Sequence[Verdict]) -> None:
    """Table 1 of a study under its verdicts; what needs a wide page is in the files alone."""
    _show_verdicts(verdicts)
    console.print(drawn(found, [h for h in found.columns if h.startswith(("quoted", "interval over"))]))


def show_probe(verdict: Verdict, found: document.Table) -> None:
    """What a probe reads, and in a table of its own how well among the scans of each class."""
    _show_verdicts([verdict])
    among = [heading for heading in found.columns if heading.startswith("among")]
    console.print(drawn(found, among))
    if among:
        console.print(drawn(found, [heading for heading in found.columns[1:] if heading not in among]))


def drawn(table: document.Table, left_out: Sequence[str] = (), colours: Mapping[str, str] | None = None) -> Table:
    """A report's table for the console: names and sentences on the left, numbers on the right.

    A row that is bold in every column closes a part of the table. ``colours`` are the styles of values that begin with
    a word, in the column ``status``.
    """
    out = Table(title=plain(table.caption))
    shown = {index: heading for index, heading in enumerate(table.columns) if heading not in left_out}
    sentences = len(table.columns) - 1 if table.ends_in_text else None
    for index, heading in shown.items():
        word = index == 0 or heading in WORDS
        whole = word and max((len(row[index]) for row in table.rows), default=0) <= WHOLE
        justify: Literal["left", "right"] = "left" if word or index == sentences else "right"
        out.add_column(plain(heading), justify=justify, no_wrap=whole, overflow="fold")
    for number, row in enumerate(table.rows):
        bold = ["bold" if (number, index) in table.strong else "" for index in range(len(row))]
        cells = []
        for index in shown:
            text = printable(row[index])
            styles = (style for word, style in (colours or {}).items() if text.startswith(word))
            cells.append(Text(text, next(styles, "") if table.columns[index] == "status" else bold[index]))
        out.add_row(*cells, end_section=all(bold))
    return out


def plain(text: str) -> str:
    """Text for the console as it stands: no markup, nothing that a terminal would obey; a name may hold anything."""
    return escape(printable(text))


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


def stops(command: Callable[..., None]) -> Callable[..., None]:
    """A command that ends with any error in one line; FAIRLUNG_TRACEBACK=1 shows the whole stack."""

    @wraps(command)
    def stopping(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if shows_whole_stack():
                raise
            text = plain(in_a_line(error))
            Console(stderr=True).print(f"[red]error:[/] {text}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return stopping
